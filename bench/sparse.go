package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// imageBytes is the space that an image of v takes on disk at most.
func (v volume) imageBytes() int64 {
	switch {
	case !v.sparse:
		return v.bytes + metaRoom
	case v.stride == 0:
		return v.filled + v.metaBytes()
	}
	return v.filled + v.bytes/v.stride*4096 + v.metaBytes()
}

// metaBytes is what an image has besides its data: internal metadata, its
// bitmap of one bit for 4 KiB above all.
func (v volume) metaBytes() int64 {
	return metaRoom + int64(v.logKiB)<<10 + (v.bytes/(4096*8)+mib-1)/mib*mib
}

// makeCopy makes a node's image of v, with metadata.
func (p *pair) makeCopy(ctx context.Context, node string, v volume) error {
	path := p.image(node, v)
	if v.sparse {
		if err := makeSparse(path, v); err != nil {
			return err
		}
	} else if err := makeImage(path, v.bytes+metaRoom, metaRoom); err != nil {
		return err
	}
	args := []string{"create-md", "--force"}
	if v.logKiB != 0 {
		args = append(args, "--al-stripes", "1", "--al-stripe-size-kB", strconv.Itoa(v.logKiB))
	}
	return p.adm(ctx, node, append(args, v.name)...)
}

// makeSparse makes an image that holds next to nothing.
func makeSparse(path string, v volume) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(v.bytes + v.metaBytes())
	if err != nil {
		err = fmt.Errorf("a sparse file of %d GiB: %w: the file system must be able to have one", v.bytes>>30, err)
	}
	for at := int64(0); err == nil && at < v.filled; at += mib {
		_, err = f.WriteAt(bytes.Repeat([]byte{1}, mib), at)
	}
	block := make([]byte, 4096)
	for at := int64(0); err == nil && v.stride > 0 && at+4096 <= v.bytes; at += v.stride {
		_, err = f.WriteAt(block, at)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// firstOrders make the first node Primary and both copies UpToDate. Sparse ones
// are equal as they are.
func (v volume) firstOrders() [][]string {
	if v.sparse {
		return [][]string{{"new-current-uuid", "--clear-bitmap", v.name}, {"primary", v.name}}
	}
	return [][]string{{"primary", "--force", v.name}, {"wait-sync", v.name}}
}
