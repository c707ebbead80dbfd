// Package bench holds the benchmarks of the way from Qualys' pages to what is
// sent, each beside a baseline: the same mapping as Go programs usually do it,
// with encoding/xml, encoding/json and compress/gzip. A test holds both to the
// same rows. Nothing of the product may import it, and nothing but tests and
// benchmarks may enter.
//
//	go test ./handler/internal/bench -bench .
package bench
