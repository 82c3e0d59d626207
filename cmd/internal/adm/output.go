package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A codeError ends the program with a status; whatever is to be said was said.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report prints an error as the user sees it, advice on its own line, and
// returns the exit status it stands for.
func (a *app) report(err error) int {
	var code codeError
	var refused *adm.Error
	var gone *noDaemonError
	switch {
	case err == nil:
		return adm.ExitOK
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled):
		return adm.ExitEnvironment // run says that it was interrupted
	case errors.As(err, &refused):
		a.complain(refused.Text, refused.Advice)
		return refused.Exit
	case errors.As(err, &gone):
		a.complain(gone.Error(), gone.advice())
		return adm.ExitEnvironment
	}
	a.complain(err.Error(), "")
	return adm.ExitRefused
}

// complain writes a message and, if there is one, a line of advice.
func (a *app) complain(text, advice string) {
	fmt.Fprintln(a.Err, strings.TrimRight(text, "\n"))
	if advice != "" {
		fmt.Fprintf(a.Err, "  hint: %s\n", advice)
	}
}

// worst is the exit status over several resources: the highest.
func (a *app) worst(errs []error) error {
	worst := adm.ExitOK
	for _, err := range errs {
		worst = max(worst, a.report(err))
	}
	if worst == adm.ExitOK {
		return nil
	}
	return codeError(worst)
}

// isTerminal reports whether w is one, so that colours and bars make sense.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

// isTerminalInput reports whether r is one, so that questions can be asked.
func isTerminalInput(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// colours reports whether w is to be coloured (https://no-color.org).
func (a *app) colours(w io.Writer) palette {
	return palette(isTerminal(w) && a.getenv("NO_COLOR") == "")
}
