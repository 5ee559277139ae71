// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/zip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// errPassword says that a password does not fit.
var errPassword = errors.New("wrong password")

// decrypt returns what an encrypted entry's raw bytes say with a password, still
// compressed, and how.
func decrypt(f *zip.File, raw io.Reader, password string) (io.Reader, uint16, error) {
	if f.Method == methodAES {
		return decryptAES(f, raw, password)
	}
	r, err := decryptZip(f, raw, password)
	return r, f.Method, err
}

// keys is the state of the traditional cipher.
// https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 6.1
type keys [3]uint32

func (k *keys) update(b byte) {
	k[0] = crc32.IEEETable[byte(k[0])^b] ^ k[0]>>8
	k[1] = (k[1]+k[0]&0xff)*134775813 + 1
	k[2] = crc32.IEEETable[byte(k[2])^byte(k[1]>>24)] ^ k[2]>>8
}

func (k *keys) next() byte {
	t := k[2] | 2
	return byte(t * (t ^ 1) >> 8)
}

type zipCrypto struct {
	r io.Reader
	k keys
}

func (z *zipCrypto) Read(p []byte) (int, error) {
	n, err := z.r.Read(p)
	for i := range p[:n] {
		p[i] ^= z.k.next()
		z.k.update(p[i])
	}
	return n, err
}

func decryptZip(f *zip.File, raw io.Reader, password string) (io.Reader, error) {
	z := &zipCrypto{r: raw, k: keys{0x12345678, 0x23456789, 0x34567890}}
	for i := range len(password) {
		z.k.update(password[i])
	}
	var head [12]byte
	if _, err := io.ReadFull(z, head[:]); err != nil {
		return nil, fmt.Errorf("read the encryption header: %w", err)
	}
	check := byte(f.CRC32 >> 24)
	if f.Flags&8 != 0 { // the checksum was not known yet when this was written
		check = byte(f.ModifiedTime >> 8)
	}
	if head[11] != check {
		return nil, errPassword
	}
	return z, nil
}

const (
	extraAES    = 0x9901
	aesRounds   = 1000
	aesCodeSize = 10
)

// decryptAES reads the entry as WinZip writes it.
// https://www.winzip.com/en/support/aes-encryption/
func decryptAES(f *zip.File, raw io.Reader, password string) (io.Reader, uint16, error) {
	strength, method, err := aesExtra(f.Extra)
	if err != nil {
		return nil, 0, err
	}
	size := 8 * (int(strength) + 1) // of the key
	salt := make([]byte, size/2+2)
	body := int64(f.CompressedSize64) - int64(len(salt)) - aesCodeSize
	if _, err := io.ReadFull(raw, salt); err != nil || body < 0 {
		return nil, 0, errors.New("the encrypted entry is too short")
	}
	salt, verifier := salt[:size/2], salt[size/2:]
	key, err := pbkdf2.Key(sha1.New, password, salt, aesRounds, 2*size+2)
	if err != nil {
		return nil, 0, fmt.Errorf("derive key: %w", err)
	}
	if subtle.ConstantTimeCompare(key[2*size:], verifier) != 1 {
		return nil, 0, errPassword
	}
	block, err := aes.NewCipher(key[:size])
	if err != nil {
		return nil, 0, fmt.Errorf("set up AES: %w", err)
	}
	return &aesReader{r: io.LimitReader(raw, body), raw: raw, block: block, mac: hmac.New(sha1.New, key[size:2*size]), used: aes.BlockSize}, method, nil
}

// aesExtra finds the strength and the compression method.
func aesExtra(extra []byte) (strength byte, method uint16, err error) {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		if extra = extra[4:]; n > len(extra) {
			break
		}
		if id == extraAES && n >= 7 && extra[4] >= 1 && extra[4] <= 3 {
			return extra[4], binary.LittleEndian.Uint16(extra[5:]), nil
		}
		extra = extra[n:]
	}
	return 0, 0, errors.New("the entry does not say how it is encrypted")
}

// aesReader decrypts, and checks at the end what it has read. The counter is
// little-endian, unlike that of [cipher.NewCTR].
type aesReader struct {
	r, raw  io.Reader
	block   cipher.Block
	mac     hash.Hash
	counter uint64
	pad     [aes.BlockSize]byte
	used    int
	end     error // what the end has come to
}

func (a *aesReader) Read(p []byte) (int, error) {
	if a.end != nil {
		return 0, a.end
	}
	n, err := a.r.Read(p)
	a.mac.Write(p[:n])
	for i := range p[:n] {
		if a.used == aes.BlockSize {
			a.counter++
			a.pad = [aes.BlockSize]byte{}
			binary.LittleEndian.PutUint64(a.pad[:], a.counter)
			a.block.Encrypt(a.pad[:], a.pad[:])
			a.used = 0
		}
		p[i] ^= a.pad[a.used]
		a.used++
	}
	if errors.Is(err, io.EOF) {
		var code [aesCodeSize]byte
		if _, cerr := io.ReadFull(a.raw, code[:]); cerr != nil || !hmac.Equal(code[:], a.mac.Sum(nil)[:aesCodeSize]) {
			err = errors.New("the encrypted bytes are not what was written")
		}
	}
	a.end = err
	return n, err
}
