package adm

import (
	"fmt"
)

// Release is the version of Pollux, set by the linker (-X).
var Release = "0.1.0-dev"

// The versions of DRBD that Pollux's configuration language and command line
// stand for. drbd-cli.md section 7: the dialect that clients choose by these
// is 9. One byte each for major, minor, patch.
const (
	drbdadmVersion     = "9.29.0"
	drbdadmVersionCode = 0x091d00
	kernelVersion      = "9.2.8"
	kernelVersionCode  = 0x090208
	drbdadmAPI         = 2
)

// printVersion prints NAME=VALUE lines that a shell can eval, as drbdadm does.
func (a *app) printVersion() error {
	_, err := fmt.Fprintf(a.Out, "DRBDADM_BUILDTAG=Pollux\\ %s\nDRBDADM_API_VERSION=%d\nDRBD_KERNEL_VERSION_CODE=0x%06x\n"+
		"DRBD_KERNEL_VERSION=%s\nDRBDADM_VERSION_CODE=0x%06x\nDRBDADM_VERSION=%s\nPOLLUX_VERSION=%s\n",
		Release, drbdadmAPI, kernelVersionCode, kernelVersion, drbdadmVersionCode, drbdadmVersion, Release)
	return err
}
