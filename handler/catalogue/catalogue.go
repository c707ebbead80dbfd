// Package catalogue opens the tables of the catalogue to the tools and tests
// that stand beside handler and may import nothing internal. It adds nothing of
// its own, and the product does not use it.
package catalogue

import (
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// A Table is a table as it is deployed.
type Table struct {
	Name string
	// Stream of the data collection rule that feeds it.
	Stream  string
	Columns []record.TableColumn
}

// Tables lists the tables of all datasets, and that of health.
func Tables() (tables []Table) {
	for _, s := range ingest.Schemas() {
		tables = append(tables, Table{s.Table, s.Stream(), s.TableColumns()})
	}
	return tables
}
