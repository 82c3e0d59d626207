// Package lvm is where snapshots of a backing volume will be taken and dropped
// around a resync; it has no code yet.
package lvm
