package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// shipment is what has become of a batch's rows so far.
type shipment struct {
	// parent is that of all rows, such as a host, unless they are mixed.
	parent   uint64
	mixed    bool
	accepted int
	letters  []letter
}

// deliver returns nil when every row of b was accepted or kept as a dead
// letter, and in any case how many were.
func (d *delivery) deliver(b record.Batch, sequence int, s shipment) (int, error) {
	err := d.sendAll(b, &s)
	if errors.Is(err, errNothingTaken) && (d.probe(b) || d.hasTaken()) {
		s.accepted, s.letters = 0, nil // it is the rows after all: part them to the last
		err = d.sendAll(b, &s)
	}
	if err != nil {
		return s.accepted, err
	}
	if len(s.letters) == 0 {
		return s.accepted, nil
	}
	name := fmt.Sprintf("%s%s/rows-%06d.ndjson.gz", d.run.letters(), d.run.ID, sequence)
	if err := writeLetters(d.ctx, d.run.Store, name, d.run.Dataset, s.letters); err != nil {
		return s.accepted, err
	}
	d.run.counts.deadLetters.Add(int64(len(s.letters)))
	d.run.Log.Error("rows refused for good: kept as dead letters", zap.Int("rows", len(s.letters)),
		zap.String("deadLetter", name), zap.String("reason", s.letters[0].reason))
	return s.accepted + len(s.letters), nil
}

// letter is a refused row.
type letter struct {
	row    []byte
	reason string
}

// sendAll sends b until each of its rows is accepted or among the letters.
func (d *delivery) sendAll(b record.Batch, s *shipment) error {
	return part(b, func(b record.Batch) error {
		sent, err := d.send(b)
		if err != nil {
			return err
		}
		s.accepted += b.Rows()
		d.run.counts.accepted.Add(int64(b.Rows()))
		d.run.counts.batches.Add(1)
		d.run.counts.bytesRows.Add(int64(len(b.Body)))
		d.run.counts.bytesSent.Add(sent)
		d.taken()
		return nil
	}, func(l letter, reason error) error {
		if d.refuse(s) {
			return nothingAccepted(reason)
		}
		s.letters = append(s.letters, l)
		return nil
	})
}

// part sends b, in halves where it is refused whole, down to the rows that are
// refused by themselves. It changes the body in doing so.
func part(b record.Batch, send func(record.Batch) error, refused func(l letter, reason error) error) error {
	err := send(b)
	switch {
	case err == nil || !isRefusal(err):
		return err
	case b.Rows() == 1:
		return refused(letter{row: slices.Clone(b.Body[1 : len(b.Body)-1]), reason: err.Error()}, err)
	}
	half := b.Rows() / 2
	cut := b.Ends[half-1] // the comma between the halves closes one and opens the other
	b.Body[cut] = ']'
	if err := part(record.Batch{Body: b.Body[:cut+1], Ends: b.Ends[:half]}, send, refused); err != nil {
		return err
	}
	b.Body[cut] = '['
	rest := slices.Clone(b.Ends[half:])
	for i := range rest {
		rest[i] -= cut
	}
	return part(record.Batch{Body: b.Body[cut:], Ends: rest}, send, refused)
}

// send sends b until it is accepted or refused for good.
func (d *delivery) send(b record.Batch) (int64, error) {
	began := d.run.Clock.Now()
	for tries := 1; ; tries++ {
		sent, err := d.run.Destination.Send(d.ctx, b)
		if err == nil {
			if tries > 1 {
				d.run.Log.Info("accepted after all", zap.Int("tries", tries), zap.Duration("took", d.run.Clock.Now().Sub(began)))
			}
			return sent, nil
		}
		if cause := context.Cause(d.ctx); cause != nil {
			return 0, cause
		}
		after, ok := retryAfter(err)
		if !ok {
			return 0, err
		}
		// Time to send lasts longer than time to read: the last batches want it.
		if err := d.run.wait(d.ctx, d.run.deadline.Add(sendGrace), err, after, tries); err != nil {
			return 0, fmt.Errorf("not accepted in %d tries: %w", tries, err)
		}
	}
}
