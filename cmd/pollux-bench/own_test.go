package main

import (
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/bench"
)

func TestOwnFlags(t *testing.T) {
	parse := func(args string) (cfg bench.Config, err error) {
		f := flag.NewFlagSet("", flag.ContinueOnError)
		f.SetOutput(io.Discard)
		take := ownFlags(f, &cfg)
		if err := f.Parse(strings.Fields(args)); err != nil {
			return cfg, err
		}
		return cfg, take()
	}
	cfg, err := parse("--op mixed --bs 64k --depth 8 --connections 2 --class flush --read-percent 30 --bandwidth 1gbit --delay 200us")
	if err != nil || cfg.Custom == nil || cfg.Custom.Name != "randmixed30-64k-qd8x2-flush" || cfg.BandwidthMbit != 1000 || cfg.DelayMicros != 200 {
		t.Errorf("%+v, %v", cfg, err)
	}
	if cfg, err := parse("--target r0 --destroy-data r0"); err != nil || cfg.Custom != nil || cfg.Target != "r0" || cfg.DestroyData != "r0" {
		t.Errorf("%+v, %v", cfg, err)
	}
	for args, want := range map[string]string{
		"--op write --bs 4x":    `"4x" is no size`,
		"--bandwidth fast":      `"fast" is no rate`,
		"--bandwidth 1.2.3mbit": "is no rate",
	} {
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}
