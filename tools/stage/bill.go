package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
)

// writeBill writes the bill of materials of a binary, as CycloneDX: the modules
// that the linker put into it, by the binary's own account.
func writeBill(path, file, arch, version string) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read what the binary is made of: %w", err)
	}
	sum, err := sha256Of(file)
	if err != nil {
		return err
	}
	main := cdx.Component{
		BOMRef: "qualys-sentinel", Type: cdx.ComponentTypeApplication, Name: binary, Version: version,
		Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}},
		Properties: &[]cdx.Property{{Name: "cdx:gomod:build:env:GOOS", Value: "linux"}, {Name: "cdx:gomod:build:env:GOARCH", Value: arch}},
	}
	components := []cdx.Component{library("std", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		components = append(components, library(m.Path, m.Version, m.Sum))
	}
	slices.SortFunc(components, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	var refs []string
	for _, c := range components {
		refs = append(refs, c.BOMRef)
	}
	bom := cdx.NewBOM()
	// The serial number follows from the binary: equal builds, equal bills.
	bom.SerialNumber = uuid.NewSHA1(uuid.NameSpaceOID, sum).URN()
	bom.Metadata = &cdx.Metadata{Component: &main}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &refs}}
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	return nil
}

func library(path, version, sum string) cdx.Component {
	c := cdx.Component{
		BOMRef: path + "@" + version, Type: cdx.ComponentTypeLibrary, Name: path, Version: version,
		PackageURL: "pkg:golang/" + strings.ToLower(path) + "@" + version,
	}
	if sum != "" {
		c.Properties = &[]cdx.Property{{Name: "cdx:gomod:module:sum", Value: sum}}
	}
	return c
}
