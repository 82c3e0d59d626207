package drbd_test

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A write of 4096 bytes, from the sender's buffer to the receiver's struct.
func Example() {
	w := drbd.Data{Sector: 8, BlockID: 0x1234, Seq: 1, Flags: drbd.DPSendWriteAck}
	buf := drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdData, Length: 24 + 4096})
	buf = w.Append(buf)
	buf = append(buf, make([]byte, 4096)...)

	h, err := drbd.DecodeHeader100(buf)
	if err == nil {
		err = drbd.CheckLength(h, true, drbd.DataSocket) // before h.Length sizes anything
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	size, err := drbd.DataSize(h, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	var got drbd.Data
	if err := got.Decode(buf[drbd.HeaderSize100:]); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%v of %d bytes at sector %d\n", h.Command, size, got.Sector)
	// Output: P_DATA of 4096 bytes at sector 8
}

// A bitmap goes over in packets until the sender is done.
func ExampleBitmapSender() {
	mine, peers := newNaiveBits(262144, 1000, 1001), newNaiveBits(262144)
	s, r := drbd.NewBitmapSender(mine, true), drbd.NewBitmapReceiver(peers)
	buf := make([]byte, drbd.MaxBitmapSize)
	for done := false; !done; {
		var cmd drbd.Command
		var payload []byte
		cmd, payload, done = s.Next(buf)
		received, err := r.Receive(cmd, payload)
		fmt.Println(cmd, len(payload), received, err)
	}
	fmt.Println(peers.NextSet(0), peers.NextClear(1000))
	// Output:
	// P_COMPRESSED_BITMAP 8 true <nil>
	// 1000 1002
}
