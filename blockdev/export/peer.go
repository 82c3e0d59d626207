package export

import (
	"net"

	"golang.org/x/sys/unix"
)

// PeerPID is the process that connected to a unix socket, as this process sees
// it; 0 if it cannot be told, as of one in a PID namespace beside ours.
func PeerPID(nc net.Conn) int {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	if err := raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	}); err != nil {
		return 0
	}
	return pid
}
