// Package meta is DRBD's on-disk metadata, format v08 of DRBD 8.4: superblock,
// activity log and quick-sync bitmap.
//
// # Areas
//
// Everything is read and written in aligned blocks of 4 KiB. Offsets in the
// superblock are signed, in sectors of 512 bytes, relative to the superblock.
//
//	external: | superblock | activity log | bitmap ...               |
//	          ^ 0, or index x 128 MiB
//	internal: | data ........... | bitmap | activity log | superblock | < 4 KiB
//	                                        the last aligned block ^
//
// The superblock is big endian and has no checksum:
//
//	 0  u64  la_size_sect: agreed size      60  u32  magic 0x8374026b, or ..6c: in use
//	 8  u64  current UUID                   64  u32  md_size_sect
//	16  u64  bitmap UUID                    68  s32  al_offset
//	24  u64  history UUIDs, 2               72  u32  al_nr_extents: slots in use
//	40  u64  device UUID                    76  s32  bm_offset
//	48  u64  reserved, 0                    80  u32  bytes per bit, 4096
//	56  u32  flags, MDF...                  84  u32  peer's largest bio, bytes
//	                                        88  u32  al_stripes, al_stripe_size_4k
//
// The activity log is a ring of blocks, each with its own checksum (alblock.go
// draws one). The bitmap is a little endian stream, one bit per 4 KiB of data.
//
// # What keeps data safe
//
// A block that may differ from the peer's has its bit set in the bitmap on
// disk, or lies in an extent that the activity log on disk names. Hence the
// order that the types ask of their caller: log before data (ActivityLog),
// data before marks (Bitmap.PageHasClears, the evicted extents of
// ActivityLog.Transaction), bits before log before superblock (ApplyAL).
//
// The package does no I/O but through Device, reads no clock and starts no
// goroutine. Values are for one goroutine at a time: in the engine they belong
// to the resource's lock.
package meta
