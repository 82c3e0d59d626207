//go:build !invariants

package replication

// mustHoldAll is what a build with the tag invariants checks after every Step:
// nothing here, and TestInvariantsCostNothing sees the call vanish.
func (r *Resource) mustHoldAll() {}
