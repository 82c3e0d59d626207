// Package meta is DRBD's on-disk metadata, format v08: superblock, activity
// log and quick-sync bitmap.
package meta
