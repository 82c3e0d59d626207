package meta_test

import (
	"fmt"

	"github.com/pollux-project/pollux/replication/meta"
)

func ExampleActivityLog() {
	al := meta.NewActivityLog(1237, 1, 8)
	first, last := meta.ExtentsOf(204800, 4096)
	ready, err := al.Begin(first, last)
	fmt.Println(ready, err)

	block := make([]byte, meta.BlockSize)
	at, evicted := al.Transaction(block)
	fmt.Printf("write block %d of the log, after the bitmap pages of %v\n", at, evicted)
	al.Committed()
	fmt.Println(al.Ready(first, last))
	al.End(first, last)
	// Output:
	// false <nil>
	// write block 0 of the log, after the bitmap pages of []
	// true
}

func ExampleNewLayout() {
	l, err := meta.NewLayout(meta.Internal, 0, 1<<30, 0, 1, 8)
	fmt.Println(l.Bitmap, l.AL, l.Superblock, l.Usable, err)
	// Output: 1073672192 1073704960 1073737728 2097016 <nil>
}
