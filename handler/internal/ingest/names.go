package ingest

import (
	"fmt"
	"time"
)

// RecordName is where the record of a run is kept.
func RecordName(integration, dataset string, started time.Time, run string) string {
	return fmt.Sprintf("%s%s-%s.json", RecordPrefix(integration, dataset), started.UTC().Format("20060102T150405Z"), run)
}

// RecordPrefix begins the names of a dataset's run records; they go on with the
// time of the run's start, 20060102T150405Z. integration is empty for those of the
// default destination.
func RecordPrefix(integration, dataset string) string {
	if integration == "" {
		return "runs/" + dataset + "/"
	}
	return "runs/integrations/" + integration + "/" + dataset + "/"
}

// LetterPrefix begins the names of a dataset's dead letters; they go on with the run.
// destination is the name of an integration's: rows for one of its destinations are
// not for another. It is empty for the default one.
func LetterPrefix(destination, dataset string) string {
	if destination == "" {
		return "deadletter/" + dataset + "/"
	}
	return "deadletter/" + destination + "/" + dataset + "/"
}

// letters begins the names of this run's dead letters.
func (r *Run) letters() string {
	destination := ""
	if r.Integration != "" {
		destination = r.DestinationName
	}
	return LetterPrefix(destination, r.Dataset.Name)
}

// CheckpointName is where the checkpoint of a dataset is kept.
func CheckpointName(destination, dataset string) string {
	return fmt.Sprintf("checkpoints/%s/%s.json", destination, dataset)
}

// AskedName is where the checkpoint of an asked window is kept, until it has
// arrived whole.
func AskedName(destination, dataset, id string) string {
	return fmt.Sprintf("checkpoints/%s/requests/%s-%s.json", destination, dataset, id)
}

// CheckpointName is where this run keeps its checkpoint.
func (r *Run) CheckpointName() string {
	if r.Asked != nil {
		return AskedName(r.DestinationName, r.Dataset.Name, r.Asked.ID)
	}
	return CheckpointName(r.DestinationName, r.Dataset.Name)
}
