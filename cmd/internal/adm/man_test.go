package adm

import (
	"os"
	"strings"
	"testing"
)

// TestManualNamesEveryCommand: who adds a command describes it.
func TestManualNamesEveryCommand(t *testing.T) {
	b, err := os.ReadFile("../../../docs/polluxadm.8")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.ReplaceAll(string(b), `\-`, "-")
	a := &app{getenv: func(string) string { return "" }}
	for _, c := range a.rootCommand().Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if !strings.Contains(manual, c.Name()) {
			t.Errorf("docs/polluxadm.8 does not name %q", c.Name())
		}
	}
}
