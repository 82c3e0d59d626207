package adm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/adm"
)

// resumeSole is resume-io --sole: polluxha has the VM of a resource go on here alone,
// because a person has looked at the peer. What he answers for is polluxha's to say.
func (a *app) resumeSole(ctx context.Context, resource, confirm string) error {
	clustered, err := a.clustered()
	switch {
	case err != nil:
		return err
	case !clustered:
		return a.noCluster("resume-io --sole")
	}
	vm, err := a.vmOf(ctx, resource)
	if err != nil {
		return err
	}
	req := adm.HARequest{Cmd: adm.HAVMResumeSole, VM: vm}
	if !a.dryRun {
		if confirm != "" && confirm != resource {
			return usageError("--confirm %s: the name is %q", confirm, resource)
		}
		if confirm == "" {
			if err := a.askSole(ctx, req, resource); err != nil {
				return err
			}
		}
		req.Args.Confirm = vm
	}
	return a.order(ctx, req, false, fmt.Sprintf("%s: goes on alone; vm %s runs here", resource, vm))
}

// askSole shows what nobody knows, and asks for the resource's name.
func (a *app) askSole(ctx context.Context, req adm.HARequest, resource string) error {
	err := a.ask(ctx, req, nil, false)
	var refused *adm.Error
	if !errors.As(err, &refused) || refused.Number != adm.HAConfirm {
		return err
	}
	if !isTerminalInput(a.In) {
		refused.Advice = fmt.Sprintf("if you have looked and answer for it: polluxadm resume-io --sole --confirm=%s %[1]s", resource)
		return refused
	}
	fmt.Fprintf(a.Err, "%s: ", refused.Text)
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && line == "" {
		return err
	}
	if name := strings.TrimSpace(line); name != resource {
		return &adm.Error{Exit: adm.ExitRefused, Text: fmt.Sprintf("%q is not %q: nothing was done", name, resource)}
	}
	return nil
}

// vmOf is the VM that polluxha runs on a resource.
func (a *app) vmOf(ctx context.Context, resource string) (string, error) {
	var vms adm.HAVMs
	if err := a.ask(ctx, adm.HARequest{Cmd: adm.HAVMList}, &vms, true); err != nil {
		return "", err
	}
	for _, v := range vms.VMs {
		for _, r := range v.Resources {
			if r.Name == resource {
				return v.Name, nil
			}
		}
	}
	return "", &adm.Error{
		Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: resume-io --sole: no VM of the cluster uses this resource, so polluxha does not decide about it", resource),
		Advice: "polluxadm resume-io " + resource + ", if you know that the peer is down",
	}
}
