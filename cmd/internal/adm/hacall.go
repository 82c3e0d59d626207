package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/pollux-project/pollux/cmd/internal/haclient"
	"github.com/pollux-project/pollux/protocol/adm"
)

// clustered reports whether this node is in a cluster: then its virtual machines
// are polluxha's, and nobody else's.
func (a *app) clustered() (bool, error) {
	d, err := a.settings()
	if err != nil {
		return false, err
	}
	_, err = os.Stat(d.HA.ClusterFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// dialManager connects to polluxha, the failover manager of this node.
func (a *app) dialManager(ctx context.Context) (*haclient.Client, error) {
	d, err := a.settings()
	if err != nil {
		return nil, err
	}
	c, err := haclient.Dial(ctx, d.HA.Socket)
	if err == nil {
		return c, nil
	}
	cause := err
	e := &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxha: control socket %s: %v", d.HA.Socket, err)}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		cause = errNoManager
		e.Text = fmt.Sprintf("polluxha is not running: nobody listens on its control socket %s", d.HA.Socket)
		e.Advice = fmt.Sprintf("start it with: systemctl start polluxha, or by hand: polluxha --config %s. Machines that run go on without it", a.settingsPath())
	case errors.Is(err, os.ErrPermission):
		e.Advice = "run polluxadm as the user that polluxha runs as, normally root"
	}
	return nil, errors.Join(e, cause)
}

// errNoManager is the cause where nobody listens on polluxha's socket.
var errNoManager = errors.New("polluxha is not running")

// managerError is what the user is told of a conversation with polluxha that ended
// with err.
func managerError(ctx context.Context, err error) error {
	var refused *adm.Error
	var malformed *adm.ProtocolError
	switch {
	case err == nil, errors.As(err, &refused):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &malformed):
		return &adm.Error{Exit: adm.ExitUsage, Text: malformed.Error()}
	}
	return &adm.Error{
		Exit: adm.ExitEnvironment, Text: err.Error(),
		Advice: "it may have been stopped or updated; what was begun goes on. See with polluxadm vm list, and its log (journalctl -u polluxha)",
	}
}
