// SPDX-License-Identifier: Apache-2.0

package schemas

// StaticResult is the result document of the analyzer static: what a file's
// bytes say without being run. All text in it is the file's own and untrusted.
type StaticResult struct {
	Schema  string       `json:"schema"` // petri.result.static.v1
	Size    int64        `json:"size"`   // bytes
	MD5     string       `json:"md5"`    // hexadecimal
	SHA1    string       `json:"sha1"`
	SHA256  Digest       `json:"sha256"`
	Entropy Entropy      `json:"entropy"`
	Type    SampleType   `json:"type"`
	ELF     *ELFIdentity `json:"elf,omitempty"`
}

// FileIdentity is the data of a finding file_identity.
type FileIdentity struct {
	Size    int64      `json:"size"` // bytes
	MD5     string     `json:"md5"`  // hexadecimal
	SHA1    string     `json:"sha1"`
	SHA256  Digest     `json:"sha256"`
	Entropy float64    `json:"entropy"` // bits per byte
	Type    SampleType `json:"type"`
}

// ELFAnomalies is the data of a finding elf_anomalies.
type ELFAnomalies struct {
	Anomalies []ELFAnomaly `json:"anomalies"`
}

// HighEntropy is the data of a finding high_entropy.
type HighEntropy struct {
	Entropy float64   `json:"entropy"` // bits per byte, of the range
	Range   *ELFRange `json:"range,omitempty"`
	Segment *int      `json:"segment,omitempty"` // index into the identity's segments
}

// StaticSchema is the schema field of a [StaticResult].
const StaticSchema = "petri.result.static.v1"

// Entropy is Shannon's, in bits per byte: 0 for one repeated byte, 8 for noise.
type Entropy struct {
	Whole     float64   `json:"whole"`      // of all bytes together
	BlockSize int64     `json:"block_size"` // bytes per block; the last one may be shorter
	Blocks    []float64 `json:"blocks"`     // at most 1024; larger files have larger blocks
}

// ELFIdentity is what an ELF file says of itself: what the kernel and the
// dynamic loader go by, and the section table where there is a sane one.
type ELFIdentity struct {
	Class       int          `json:"class"`      // 32 or 64
	Endianness  string       `json:"endianness"` // little or big
	Machine     string       `json:"machine"`    // EM_X86_64, …
	Arch        string       `json:"arch,omitempty"`
	OSABI       string       `json:"os_abi"` // SYSV, GNU/Linux, …
	ABIVersion  int          `json:"abi_version"`
	ObjectType  string       `json:"object_type"` // exec, dyn, rel, core, none or a number
	Flags       uint32       `json:"flags"`
	FlagNames   []string     `json:"flag_names,omitempty"` // of MIPS, ARM, RISC-V, …: the calling convention and CPU
	Entry       uint64       `json:"entry"`
	Linkage     string       `json:"linkage"` // dynamic, static or none
	Interpreter string       `json:"interpreter,omitempty"`
	Needed      []string     `json:"needed,omitempty"`   // shared libraries, in the loader's order
	Versions    []string     `json:"versions,omitempty"` // of those libraries, that its loader insists on: libc.so.6 GLIBC_2.38
	SOName      string       `json:"soname,omitempty"`
	RPath       []string     `json:"rpath,omitempty"`
	RunPath     []string     `json:"runpath,omitempty"`
	PIE         bool         `json:"pie"`
	Stripped    *bool        `json:"stripped,omitempty"` // none: there is no section table to tell by
	BuildID     string       `json:"build_id,omitempty"` // hexadecimal
	ExecStack   bool         `json:"exec_stack"`
	Relro       string       `json:"relro,omitempty"` // partial or full
	Module      bool         `json:"module,omitempty"`
	Segments    []ELFSegment `json:"segments,omitempty"`
	Sections    []ELFSection `json:"sections,omitempty"`
	Overlay     *ELFRange    `json:"overlay,omitempty"` // bytes behind everything that the headers name
	Anomalies   []ELFAnomaly `json:"anomalies,omitempty"`
	Omitted     *ELFOmitted  `json:"omitted,omitempty"`
}

// ELFSegment is a program header.
type ELFSegment struct {
	Type    string   `json:"type"`  // PT_LOAD, …
	Flags   string   `json:"flags"` // r-x
	Offset  uint64   `json:"offset"`
	VAddr   uint64   `json:"vaddr"`
	FileSz  uint64   `json:"filesz"`
	MemSz   uint64   `json:"memsz"`
	Entropy *float64 `json:"entropy,omitempty"`
}

// ELFSection is a section header.
type ELFSection struct {
	Name   string `json:"name"`
	Type   string `json:"type"`  // SHT_PROGBITS, …
	Flags  string `json:"flags"` // wax, as far as set
	Addr   uint64 `json:"addr"`
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"size"`
}

// ELFRange is a range of a file's bytes.
type ELFRange struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
}

// ELFAnomaly is an irregularity of the headers: compilers do not write it, and
// Linux may run the file all the same.
type ELFAnomaly struct {
	Name   string `json:"name"`   // a word: segment_outside, …
	Detail string `json:"detail"` // for people
}

// ELFOmitted counts what limits left out of an [ELFIdentity].
type ELFOmitted struct {
	Segments  int `json:"segments,omitempty"`
	Sections  int `json:"sections,omitempty"`
	Needed    int `json:"needed,omitempty"`
	Versions  int `json:"versions,omitempty"`
	Anomalies int `json:"anomalies,omitempty"`
}
