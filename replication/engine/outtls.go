package engine

// The part of out that differs with TLS. What is filed is encrypted by who
// sends it, sendChunk at a time: into records of 16 KiB, gathered by the wire,
// handed to the socket in one system call. Positions count what was filed, not
// the records: a chunk is sent when its last record is.

// writeTLS tries once, without waiting. What the socket does not take of a
// chunk stays in left; p then begins with that chunk the next time.
func (o *out) writeTLS(p []byte) (sent int, err error) {
	for sent < len(p) {
		chunk := p[sent:min(len(p), sent+sendChunk)]
		if err := o.encrypt(chunk); err != nil {
			return sent, err
		}
		n, err := o.writeRaw(o.left, o.try)
		o.left = o.left[n:]
		if err != nil || len(o.left) > 0 {
			return sent, err
		}
		sent += len(chunk)
	}
	return sent, nil
}

func (o *out) encrypt(chunk []byte) error {
	_, err := o.conn.tls.conn.Write(chunk)
	o.left = o.conn.tls.wire.take()
	return err
}

// sendPart waits until the socket has taken something, with TLS a whole chunk.
func (o *out) sendPart() (sent int, err error) {
	p := o.unsent()
	if o.conn.tls == nil {
		return o.send(p)
	}
	p = p[:min(len(p), sendChunk)]
	if len(o.left) == 0 {
		if err := o.encrypt(p); err != nil {
			return 0, err
		}
	}
	for len(o.left) > 0 {
		n, err := o.send(o.left)
		o.left = o.left[n:]
		if err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// closeWrite tells the peer that nothing more comes; with TLS by a
// close_notify, behind all records unless some are still under way.
func (o *out) closeWrite() {
	if t := o.conn.tls; t != nil {
		o.mu.Lock()
		idle := !o.flushing && o.failed == nil
		o.flushing = true // nobody sends behind it
		o.mu.Unlock()
		if idle {
			t.conn.CloseWrite()              //nolint:errcheck // the end of the connection says the same
			o.writeRaw(t.wire.take(), o.try) //nolint:errcheck // likewise
		}
	}
	o.conn.CloseWrite() //nolint:errcheck // it may be dead
}
