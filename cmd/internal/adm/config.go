package adm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

const defaultSettings = conf.DefaultDaemonFile

// A configuration is what was read from files, each part on first use.
type configuration struct {
	daemon    *conf.Daemon
	resources *conf.Config
}

// settingsPath is the absolute path of the pollux.toml in use: --config, else
// $POLLUX_CONFIG, else the default.
func (a *app) settingsPath() string {
	path := orElse(a.settingsFile, orElse(a.getenv("POLLUX_CONFIG"), defaultSettings))
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path // no working directory: the file system will say more
}

// settings reads pollux.toml; only the default one may be missing.
func (a *app) settings() (*conf.Daemon, error) {
	if a.config.daemon != nil {
		return a.config.daemon, nil
	}
	path := a.settingsPath()
	d, err := conf.LoadDaemon(path)
	if errors.Is(err, fs.ErrNotExist) && path == defaultSettings {
		d, err = conf.DefaultDaemon(), nil
	}
	if err != nil {
		return nil, a.asConfigError(err)
	}
	a.config.daemon = d
	return d, nil
}

// loadConfig reads the resources: those of -c, else those of pollux.toml.
func (a *app) loadConfig() (*conf.Config, error) {
	if a.config.resources != nil {
		return a.config.resources, nil
	}
	d, err := a.settings()
	if err != nil {
		return nil, err
	}
	env := conf.SystemEnv()
	env.Hostname = d.NodeName
	env.Stdin = a.In
	var c *conf.Config
	if a.configFile != "" {
		c, err = conf.Load([]string{a.configFile}, env)
	} else {
		c, err = d.LoadResources(env)
	}
	if err != nil {
		return nil, a.asConfigError(err)
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(a.Err, w)
	}
	a.config.resources = c
	return c, nil
}

// asConfigError gives an error of conf its exit status.
func (a *app) asConfigError(err error) error {
	var pe *conf.ParseError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, conf.ErrUnknownResource):
		return &adm.Error{Exit: adm.ExitUsage, Text: err.Error()}
	case errors.As(err, &pe):
		return &adm.Error{Exit: adm.ExitRefused, Text: err.Error(), Advice: "nothing was done; correct the configuration, then repeat the command"}
	case errors.Is(err, os.ErrNotExist):
		return &adm.Error{Exit: adm.ExitRefused, Text: err.Error(), Advice: "name another file with -c FILE (drbd.conf) or --config FILE (pollux.toml)"}
	}
	return &adm.Error{Exit: adm.ExitRefused, Text: err.Error()}
}

// volumeIDs lists the volumes of this host's resources in the order of the
// files, stacked ones left out.
func (a *app) volumeIDs() ([]volumeID, error) {
	c, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	var ids []volumeID
	for _, s := range c.Resources {
		if s.Ignored || s.Stacked || (a.configFile == "" && !s.Runnable()) {
			continue
		}
		r, err := c.Resolve(s.Name)
		if err != nil {
			return nil, a.asConfigError(err)
		}
		for _, v := range r.Volumes {
			ids = append(ids, volumeID{Resource: s.Name, Number: v.Number, Minor: v.Minor})
		}
	}
	return ids, nil
}

func (a *app) resourceNames() ([]string, error) {
	ids, err := a.volumeIDs()
	var names []string
	for _, id := range ids {
		if len(names) == 0 || names[len(names)-1] != id.Resource {
			names = append(names, id.Resource)
		}
	}
	return names, err
}

// targets resolves the words of a command line.
func (a *app) targets(words []string) ([]target, error) {
	ids, err := a.volumeIDs()
	if err != nil {
		return nil, err
	}
	return findTargets(words, ids)
}

// resolve returns a target's resource and those of its volumes that it means.
func (a *app) resolve(t target) (*conf.Resource, []conf.Volume, error) {
	c, err := a.loadConfig()
	if err != nil {
		return nil, nil, err
	}
	r, err := c.Resolve(t.Resource)
	if err != nil {
		return nil, nil, a.asConfigError(err)
	}
	vols := make([]conf.Volume, 0, len(r.Volumes))
	for _, v := range r.Volumes {
		if t.Volume == nil || *t.Volume == v.Number {
			vols = append(vols, v)
		}
	}
	return r, vols, nil
}

func (a *app) volumes(t target) ([]conf.Volume, error) {
	_, vols, err := a.resolve(t)
	return vols, err
}

// startupTimeout is the resource's wfc-timeout; 0 waits for ever.
func (a *app) startupTimeout(name string) time.Duration {
	r, _, err := a.resolve(target{Resource: name})
	if err != nil {
		return 0 // it was resolved before; without a limit nothing is cut short
	}
	return r.Startup.WFCTimeout
}

// completeResources offers resource names to the shell.
func (a *app) completeResources(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	names, err := a.resourceNames()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var fit []string
	for _, n := range append(names, "all") {
		if strings.HasPrefix(n, prefix) {
			fit = append(fit, n)
		}
	}
	return fit, cobra.ShellCompDirectiveNoFileComp
}
