// Auditcheck reads a log as an auditor would who has none of our code: Go's own packages for signed
// notes and transparency logs, and transparency.dev's for a witness's cosignature.
//
//	auditcheck log FOLDER KEY [WITNESS-KEY COSIGNED]   every entry, every hash, proofs between sizes
//	auditcheck proof FILE KEY                          one file of c2sp.org/tlog-proof
//	auditcheck sign PRIVATE-KEY < TEXT                 a note, as Go signs it
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "auditcheck:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 3 && args[0] == "log":
		return checkLog(args[1], args[2], args[3:])
	case len(args) == 3 && args[0] == "proof":
		return checkProof(args[1], args[2])
	case len(args) == 2 && args[0] == "sign":
		return sign(args[1])
	}
	return errors.New("usage: log FOLDER KEY [WITNESS COSIGNED] | proof FILE KEY | sign KEY")
}

// open checks a checkpoint's signature and reads its three lines.
func open(text []byte, verifiers ...note.Verifier) (string, tlog.Tree, error) {
	var tree tlog.Tree
	signed, err := note.Open(text, note.VerifierList(verifiers...))
	if err != nil {
		return "", tree, err
	}
	if len(signed.Sigs) != len(verifiers) {
		return "", tree, fmt.Errorf("%d of %d keys have signed", len(signed.Sigs), len(verifiers))
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) != 4 {
		return "", tree, fmt.Errorf("%d lines in the checkpoint", len(lines)-1)
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return "", tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return lines[0], tree, err
}

// folder gives tlog its tiles from where C2SP's tlog-tiles has them.
type folder string

func (folder) Height() int                     { return height }
func (folder) SaveTiles([]tlog.Tile, [][]byte) {}

func (dir folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, len(tiles))
	for at, tile := range tiles {
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
		content, err := os.ReadFile(filepath.Join(string(dir), path))
		if err != nil {
			return nil, err
		}
		found[at] = content
	}
	return found, nil
}

func (dir folder) bundle(number, width int64) ([][]byte, error) {
	tile := tlog.Tile{H: height, L: -1, N: number, W: int(width)}
	path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/data", height), "tile/entries", 1)
	rest, err := os.ReadFile(filepath.Join(string(dir), path))
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(rest) > 0 {
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return nil, fmt.Errorf("%s breaks off", path)
		}
		stop := 2 + int(binary.BigEndian.Uint16(rest))
		entries, rest = append(entries, rest[2:stop]), rest[stop:]
	}
	if int64(len(entries)) != width {
		return nil, fmt.Errorf("%s has %d entries, not %d", path, len(entries), width)
	}
	return entries, nil
}

func checkLog(path, key string, witness []string) error {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(path, "checkpoint"))
	if err != nil {
		return err
	}
	origin, tree, err := open(text, verifier)
	if err != nil {
		return err
	}
	if origin != verifier.Name() {
		return fmt.Errorf("origin %q, key of %q", origin, verifier.Name())
	}
	dir := folder(path)
	hashes := tlog.TileHashReader(tree, dir)
	for start := int64(0); start < tree.N; start += 1 << height {
		width := min(tree.N-start, 1<<height)
		entries, err := dir.bundle(start>>height, width)
		if err != nil {
			return err
		}
		indexes := make([]int64, width)
		for at := range indexes {
			indexes[at] = tlog.StoredHashIndex(0, start+int64(at))
		}
		signed, err := hashes.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for at, entry := range entries {
			if tlog.RecordHash(entry) != signed[at] {
				return fmt.Errorf("entry %d is not what was signed", start+int64(at))
			}
		}
	}
	step := max(1, tree.N/7)
	for before := int64(1); before <= tree.N; before += step {
		small, err := tlog.TreeHash(before, hashes)
		if err != nil {
			return err
		}
		proof, err := tlog.ProveTree(tree.N, before, hashes)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, before, small); err != nil {
			return err
		}
	}
	if len(witness) == 2 {
		if err := checkCosigned(witness[0], witness[1], verifier); err != nil {
			return err
		}
	}
	fmt.Printf("%s %d %s\n", origin, tree.N, tree.Hash)
	return nil
}

func checkCosigned(key, path string, verifier note.Verifier) error {
	witness, err := cosignature.NewVerifierForCosignatureV1(key)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, _, err = open(text, verifier, witness)
	return err
}

func checkProof(path, key string) error {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, checkpoint, found := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("no tlog-proof")
	}
	entry, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	_, tree, err := open(checkpoint, verifier)
	if err != nil {
		return err
	}
	if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)); err != nil {
		return err
	}
	fmt.Printf("%d %s\n", index, entry)
	return nil
}

func sign(key string) error {
	signer, err := note.NewSigner(key)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: string(text)}, signer)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(signed)
	return err
}
