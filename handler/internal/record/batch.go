package record

// A Batch is rows on their way to a destination.
type Batch struct {
	// Body is the rows as a JSON array: "[{...},{...}]".
	Body []byte
	// Ends holds, for each row, the offset in Body behind it.
	Ends []int
}

// Rows is the number of rows.
func (b Batch) Rows() int { return len(b.Ends) }
