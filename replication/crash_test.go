package replication_test

import (
	"flag"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/replication/repltest"
)

var crashEvery = flag.Bool("every", false, "TestCrashPoints tries every class of what may survive a power cut")

// crashPoints are the ways in which the power can go at one durable step.
func crashPoints(s repltest.Scenario, step repltest.DurableStep) []repltest.CrashPoint {
	every := *crashEvery && s.Config.Sectors < 1<<17 // a world of 100 MiB takes its time
	var points []repltest.CrashPoint
	for _, failover := range []bool{false, true} {
		if failover && !step.Failover {
			continue
		}
		for _, after := range []bool{false, true} {
			p := repltest.CrashPoint{Step: step.Number, After: after, Failover: failover}
			points = append(points, repltest.SurvivalPoints(p, step.Unsynced, every)...)
		}
	}
	return points
}

// TestCrashPoints cuts the power of a node before and after each of its durable
// steps, brings it back on what survived, and checks what was promised.
func TestCrashPoints(t *testing.T) {
	percent := debug.SetGCPercent(400) // worlds are large and short-lived: half the time
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	for _, s := range repltest.Scenarios() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			steps, err := repltest.CountDurable(s)
			if err != nil {
				t.Fatalf("without a crash: %v", err)
			}
			if len(steps) == 0 {
				t.Fatal("nothing is durable")
			}
			points := 0
			defer func() { t.Logf("%d durable steps, %d power cuts", len(steps), points) }()
			for _, step := range steps {
				for _, p := range crashPoints(s, step) {
					points++
					if err := repltest.CrashAt(s, p); err != nil {
						t.Fatalf("power cut %v: %v", p, err)
					}
				}
			}
		})
	}
}

// TestCrashPointsNotice shows that each duty of the engine is tested: without
// it, some crash point loses data.
func TestCrashPointsNotice(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // worlds are large and short-lived: half the time
	for _, tt := range []struct {
		name     string
		sabotage repltest.Sabotage
		scenario string
		says     string
	}{
		{"fdatasync does nothing at an eviction", repltest.LieAboutSync, "eviction", "no bit is set"},
		{"sync-data ignored by a resync target", repltest.IgnoreSyncData, "resync_target", "no bit is set"},
		{"fdatasync does nothing", repltest.LieAboutSync, "demotion", "at rest sector"},
		{"metadata answered before it is durable", repltest.AnswerEarly, "peer_lost", "at rest sector"},
		{"activity log before bitmap", repltest.MarksFirst, "eviction_alone", "no bit is set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := firstLoss(t, tt.scenario, tt.sabotage)
			if err == nil {
				t.Fatal("no crash point notices")
			}
			said, _, _ := strings.Cut(err.Error(), "\n")
			if t.Log(said); !strings.Contains(said, tt.says) {
				t.Errorf("noticed something else than %q", tt.says)
			}
		})
	}
}

func firstLoss(t *testing.T, name string, sabotage repltest.Sabotage) error {
	t.Helper()
	for _, s := range repltest.Scenarios() {
		if s.Name != name {
			continue
		}
		steps, err := repltest.CountDurable(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps {
			for _, p := range crashPoints(s, step) {
				p.Sabotage = sabotage
				if err := repltest.CrashAt(s, p); err != nil {
					return err
				}
			}
		}
		return nil
	}
	t.Fatalf("no scenario %s", name)
	return nil
}
