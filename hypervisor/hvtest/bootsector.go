package hvtest

// The guest of the conformance suite is a boot sector: it needs no kernel, is
// up within a second even when emulated, and yet reads its virtio disk through
// the BIOS, feels ACPI's power button and switches itself off.
//
// It writes one character after the other to the first serial port: "U" when
// it is up, then, at most 18 times a second, the first byte of the disk's
// second sector or "E" if that can't be read, and "P" when the power button
// was pressed. If that byte is 'D' (deaf) it doesn't look at the button.
const (
	Attentive byte = 'A'
	Deaf      byte = 'D'

	CharUp        = 'U'
	CharReadError = 'E'
	CharPower     = 'P'
)

// DiskBytes is the size of [BootDisk]'s image.
const DiskBytes = 1 << 20

const sectorBytes = 512

// code is 16-bit real mode, loaded at 0x7c00. The ports are those that SeaBIOS
// gives to the ICH9 of machine q35: PM1_STS 0x600, PM1_EN 0x602, PM1_CNT 0x604.
var code = []byte{
	0xfa,       // cli
	0x31, 0xc0, // xor ax, ax
	0x8e, 0xd8, // mov ds, ax
	0x8e, 0xc0, // mov es, ax
	0x8e, 0xd0, // mov ss, ax
	0xbc, 0x00, 0x7c, // mov sp, 0x7c00
	0xfb,             // sti
	0xba, 0x02, 0x06, // mov dx, 0x602
	0xb8, 0x00, 0x01, // mov ax, 0x100    ; PWRBTN_EN
	0xef,       // out dx, ax
	0xb0, 0x55, // mov al, 'U'
	0xe8, 0x37, 0x00, // call put
	// loop:
	0xf4,             // hlt              ; until the next timer interrupt
	0xb8, 0x01, 0x02, // mov ax, 0x0201   ; read one sector
	0xb9, 0x02, 0x00, // mov cx, 0x0002   ; cylinder 0, sector 2
	0xba, 0x80, 0x00, // mov dx, 0x0080   ; head 0, first disk
	0xbb, 0x00, 0x7e, // mov bx, 0x7e00
	0xcd, 0x13, // int 0x13
	0xb0, 0x45, // mov al, 'E'
	0x72, 0x03, // jc show
	0xa0, 0x00, 0x7e, // mov al, [0x7e00]
	// show:
	0xe8, 0x1e, 0x00, // call put
	0x80, 0x3e, 0x00, 0x7e, 0x44, // cmp byte [0x7e00], 'D'
	0x74, 0xe0, // je loop
	0xba, 0x00, 0x06, // mov dx, 0x600
	0xed,             // in ax, dx
	0xf6, 0xc4, 0x01, // test ah, 1       ; PWRBTN_STS
	0x74, 0xd7, // jz loop
	0xb0, 0x50, // mov al, 'P'
	0xe8, 0x09, 0x00, // call put
	0xba, 0x04, 0x06, // mov dx, 0x604
	0xb8, 0x00, 0x20, // mov ax, 0x2000   ; SLP_EN, SLP_TYP 0: off
	0xef,       // out dx, ax
	0xeb, 0xc9, // jmp loop
	// put:
	0xba, 0xf8, 0x03, // mov dx, 0x3f8
	0xee, // out dx, al
	0xc3, // ret
}

// BootDisk returns the image of a disk that boots the suite's guest. temper is
// [Attentive] or [Deaf].
func BootDisk(temper byte) []byte {
	disk := make([]byte, DiskBytes)
	copy(disk, code)
	disk[sectorBytes-2], disk[sectorBytes-1] = 0x55, 0xaa // the BIOS's mark of a boot sector
	disk[sectorBytes] = temper
	return disk
}
