package simulator

// CollectorRow opens collectorRow to tests.
var CollectorRow = collectorRow
