//! What a segment's header and name promise: fixed bytes, two copies, and no trust in either alone.

use super::*;

const HEADER: SegmentHeader = SegmentHeader {
    stream: Stream::Events,
    base: 42,
    salt: 0x1122_3344_5566_7788,
    size: 65536,
    created_micros: 1_700_000_000_000_000,
    durable: 42,
};

/// One copy of `HEADER`, computed by another program.
#[rustfmt::skip]
const COPY: [u8; 64] = [
    0x45, 0x56, 0x46, 0x4c, 0x53, 0x45, 0x47, 0x31, 0x86, 0x5f, 0x76, 0x28, 0x01, 0x00, 0x00, 0x00,
    0x2a, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x40, 0x1e, 0x18, 0x24, 0x0a, 0x06, 0x00,
    0x2a, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

fn block(header: &SegmentHeader) -> Vec<u8> {
    let mut out = Vec::new();
    encode_header(&mut out, header);
    out
}

#[test]
fn the_bytes_of_a_header_never_change() {
    let mut expected = vec![0; 4096];
    expected[..64].copy_from_slice(&COPY);
    expected[512..576].copy_from_slice(&COPY);
    assert_eq!(block(&HEADER), expected);
    assert_eq!(decode_header(&expected, 42), Some(HEADER));
}

#[test]
fn one_flipped_bit_or_one_lost_sector_costs_nothing() {
    let whole = block(&HEADER);
    for bit in 0..1024 * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_header(&bytes, 42), Some(HEADER), "bit {bit}");
    }
    for sector in [0..512, 512..1024] {
        for filler in [0x00, 0xff, 0xa5] {
            let mut bytes = whole.clone();
            bytes[sector.clone()].fill(filler);
            assert_eq!(decode_header(&bytes, 42), Some(HEADER), "sector {sector:?} of {filler:#x}");
        }
    }
}

#[test]
fn another_version_is_told_from_damage() {
    let mut newer = block(&HEADER);
    assert_eq!(foreign_version(&newer), None, "our own is not foreign");
    newer[7] = b'2';
    assert_eq!(foreign_version(&newer), None, "one copy alone is damage");
    newer[COPY_B + 7] = b'2';
    assert_eq!((foreign_version(&newer), decode_header(&newer, 42)), (Some('2'), None));
    for (at, what) in
        [(0, "another kind of file"), (9, "a checksum that fails"), (20, "a field that changed")]
    {
        let mut bytes = newer.clone();
        bytes[at] ^= 1;
        assert_eq!(foreign_version(&bytes), None, "{what}");
    }
    newer[COPY_B + 7] = b'3';
    assert_eq!(foreign_version(&newer), None, "two copies that disagree");
    assert_eq!(foreign_version(&newer[..COPY_B]), None, "a file cut behind its first copy");
}

#[test]
fn two_damaged_copies_are_no_header() {
    for bit in 0..COPY.len() * 8 {
        let mut bytes = block(&HEADER);
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes[COPY_B + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_header(&bytes, 42), None, "bit {bit}");
    }
    assert_eq!(decode_header(&[0; 4096], 0), None);
    for len in 0..64 {
        assert_eq!(decode_header(&block(&HEADER)[..len], 42), None, "cut to {len} bytes");
    }
}

#[test]
fn of_two_copies_that_differ_the_one_with_the_expected_base_counts() {
    let stale = SegmentHeader { base: 7, salt: 9, ..HEADER };
    for (a, b) in [(HEADER, stale), (stale, HEADER)] {
        let mut bytes = block(&a);
        bytes[COPY_B..COPY_B + 64].copy_from_slice(&block(&b)[..64]);
        assert_eq!(decode_header(&bytes, 42), Some(HEADER));
        assert_eq!(decode_header(&bytes, 7), Some(stale));
        assert_eq!(decode_header(&bytes, 1), Some(a));
    }
}

#[test]
fn only_our_own_names_are_ours() {
    assert_eq!(segment_name(42), "00000000000000000042.seg");
    assert_eq!(parse_segment_name("00000000000000000042.seg"), Some(42));
    assert_eq!(parse_segment_name(&segment_name(u64::MAX)), Some(u64::MAX));
    assert_eq!(spare_name(3), "spare-00000000000003.seg");
    assert_eq!(parse_spare_name("spare-00000000000003.seg"), Some(3));
    for foreign in [
        "",
        ".seg",
        "42.seg",
        "00000000000000000042.seg.bak",
        "00000000000000000042 (copy).seg",
        "+0000000000000000042.seg",
        "99999999999999999999.seg",
        "0000000000000000004x.seg",
        "spare-3.seg",
        "spare-+0000000000003.seg",
        "spare-00000000000003",
    ] {
        assert_eq!(parse_segment_name(foreign), None, "{foreign}");
        assert_eq!(parse_spare_name(foreign), None, "{foreign}");
    }
    assert_eq!(parse_segment_name("spare-00000000000003.seg"), None);
}

#[test]
fn a_noted_position_is_never_behind_the_offset_looked_for() {
    let segment = Segment::new(HEADER, PathBuf::from("x.seg"), 65536, 65536);
    assert_eq!(segment.position_before(42), DATA_START);
    let far = DATA_START + NOTE_EVERY;
    segment.note(50, far - 8); // too near to the last to be worth keeping
    segment.note(60, far);
    segment.note(55, far + NOTE_EVERY); // a second reader, behind the first
    segment.note(70, far + NOTE_EVERY);
    for (offset, position) in
        [(42, DATA_START), (59, DATA_START), (60, far), (69, far), (70, far + NOTE_EVERY)]
    {
        assert_eq!(segment.position_before(offset), position, "offset {offset}");
    }
}
