use super::*;

const SALT: u32 = 0x1234_5678;

fn layout() -> Layout {
    Layout {
        segment_bytes: 1 << 20,
        segments: 8,
        record_bytes_max: RECORD_BYTES_MAX,
        chunk_bytes: RECORD_BYTES_MAX - RECORD_HEADER,
        map_pointers: (RECORD_BYTES_MAX - RECORD_HEADER) / POINTER,
        salt: SALT,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A page is mostly zero: its bytes up to the last that is not.
fn page_hex(encode: impl FnOnce(&mut [u8])) -> String {
    let mut page = vec![0xff; PAGE];
    encode(&mut page);
    let end = page.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    hex(&page[..end])
}

fn header() -> Header {
    Header {
        log_id: 0x0102_0304_0506_0708,
        node: 9,
        shard: 2,
        shards: 4,
        hash_seed: 0x1111_2222_3333_4444,
        file_bytes: 1 << 24,
        segment_bytes: 1 << 20,
        segments: 8,
        created_ms: 1_700_000_000_000,
    }
}

fn record() -> RecordHeader {
    RecordHeader {
        kind: Kind::Object,
        level: 0,
        epoch: 7,
        position: 259,
        hash: 0xaaaa_bbbb_cccc_dddd,
        version: 0x42,
        length: 4,
        created_ms: 1_700_000_000_001,
        expires_ms: 1_700_000_060_001,
        flags: 0x8001,
        checksum: crc(0, &[b"body"]),
        key_bytes: 4,
        meta_bytes: 5,
    }
}

#[test]
fn golden_bytes() {
    let state = StatePage {
        state: RunState::Clean,
        killed_below: 3,
        power_cut_below: 2,
        damaged_below: 1,
        boot: *b"0123456789abcdef",
        written_ms: 1_700_000_000_002,
        run: Run { id: 7, before: 6 },
    };
    let head = Head { segment: 5, epoch: 7, first_block: 99 };
    let trailer =
        Trailer { segment: 5, epoch: 7, first_block: 99, next_block: 120, entries: 3, footer_crc: 0xfeed, used: 8192 };
    let block = BlockHeader { segment: 5, epoch: 7, offset: 4096, used: 200, sequence: 100, durable: 98, records: 2 };
    let mut block_bytes = vec![0xff; BLOCK_HEADER];
    block.encode(SALT, &mut block_bytes);
    let mut record_bytes = [&[0xff; RECORD_HEADER][..], b"ns/k", b"metas", b"body"].concat();
    record().encode(&layout(), &mut record_bytes);
    let mut pointer = [0; POINTER];
    Pointer { segment: 5, epoch: 7, position: 259 }.encode(&mut pointer);
    let mut footer = Vec::new();
    FooterEntry::of(&layout(), &record()).encode(&mut footer);
    assert_eq!(footer.len(), FOOTER_ENTRY);
    let found = [
        ("header", page_hex(|page| header().encode(page))),
        ("state", page_hex(|page| state.encode(SALT, page))),
        ("head", page_hex(|page| head.encode(SALT, page))),
        ("trailer", page_hex(|page| trailer.encode(SALT, page))),
        ("block", hex(&block_bytes)),
        ("record", hex(&record_bytes)),
        ("pointer", hex(&pointer)),
        ("footer", hex(&footer)),
    ];
    for ((name, found), golden) in found.iter().zip(GOLDEN) {
        assert_eq!(found, golden, "{name}");
    }
}

const GOLDEN: [&str; 8] = [
    "5354524154414c4701000000e2895d520807060504030201090000000000000002000000040000004444333322221111000000010000000000001000080000000068e5cf8b01",
    "5354415468cbee6c02000000030000000200000001000000303132333435363738396162636465660268e5cf8b010000070000000000000006",
    "48454144d010673c050000000700000063",
    "54524c529f2703c905000000070000006300000000000000780000000000000003000000edfe00000020",
    "424c434bd435f1b8050000000700000000100000c8000000640000000000000062000000000000000200000000000000",
    "524301004182de230700000003010000ddddccccbbbbaaaa420000000000000004000000000000000168e5cf8b0104006152e6cf8b010180b20ba8db050000006e732f6b6d65746173626f6479",
    "050000000700000003010000",
    "ddddccccbbbbaaaa4200000000000000030100003df1536501800101",
];

#[test]
fn what_was_encoded_is_decoded_and_one_changed_bit_is_noticed() {
    let layout = layout();
    let mut page = vec![0; PAGE];
    header().encode(&mut page);
    assert_eq!(Header::decode(&page), Ok(header()));
    assert_eq!(Header::decode(&[0; PAGE]), Err(BadHeader::Blank));
    for bit in 0..80 * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(Header::decode(&page), Err(BadHeader::Damaged(_))), "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
    put(&mut page, at::header::VERSION, &9_u32.to_le_bytes());
    seal(0, &mut page, at::header::CRC);
    assert_eq!(Header::decode(&page), Err(BadHeader::Newer(9)));

    let mut bytes = [&[0; RECORD_HEADER][..], b"ns/k", b"metas", b"body"].concat();
    record().encode(&layout, &mut bytes);
    assert_eq!(RecordHeader::decode(&layout, &bytes), Some(record()));
    for bit in 0..(RECORD_HEADER + 9) * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(RecordHeader::decode(&layout, &bytes), None, "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for shorter in 0..RECORD_HEADER + 9 {
        assert_eq!(RecordHeader::decode(&layout, &bytes[..shorter]), None);
    }
    let other_log = Layout { salt: SALT + 1, ..layout };
    assert_eq!(RecordHeader::decode(&other_log, &bytes), None, "an earlier log's bytes do not validate");
}

#[test]
fn lengths_that_no_writer_writes_are_refused_before_they_are_used() {
    let layout = layout();
    for (length, meta_bytes, kind) in [
        (u64::MAX, 0, Kind::Object),
        (0, u32::MAX, Kind::Object),
        (u64::MAX, 0, Kind::Commit),
        (1 << 50, 0, Kind::Commit),
        (RECORD_BYTES_MAX as u64, 0, Kind::Chunk),
    ] {
        let mut bytes = vec![0; 2 * RECORD_BYTES_MAX];
        RecordHeader { kind, key_bytes: 0, ..record() }.encode(&layout, &mut bytes);
        put(&mut bytes, 32, &length.to_le_bytes());
        put(&mut bytes, 60, &meta_bytes.to_le_bytes());
        assert_eq!(RecordHeader::decode(&layout, &bytes), None);
    }
}

#[test]
fn pages_do_not_validate_elsewhere() {
    let layout = layout();
    let mut page = vec![0; PAGE];
    let head = Head { segment: 5, epoch: 7, first_block: 99 };
    head.encode(SALT, &mut page);
    assert_eq!(Head::decode(SALT, 5, &page), Some(head));
    assert_eq!(Head::decode(SALT, 4, &page), None);
    let block = BlockHeader { segment: 5, epoch: 7, offset: 4096, used: 200, sequence: 100, durable: 98, records: 2 };
    block.encode(SALT, &mut page);
    assert_eq!(BlockHeader::decode(&layout, 5, 4096, &page), Some(block));
    assert_eq!(BlockHeader::decode(&layout, 5, 8192, &page), None);
    assert_eq!(BlockHeader::decode(&layout, 6, 4096, &page), None);
}

#[test]
fn there_are_always_four_segments_or_no_log() {
    assert_eq!(Layout::choose(1 << 30, None), Some((32 << 20, 31)));
    assert_eq!(Layout::choose(10 << 30, None), Some((32 << 20, 319)));
    assert_eq!(Layout::choose(SEGMENTS_AT + (4 << 16), None), Some((64 << 10, 4)));
    assert_eq!(Layout::choose(SEGMENTS_AT + (4 << 16) - 1, None), None);
    assert_eq!(Layout::choose(1 << 20, Some(64 << 10)), Some((64 << 10, 15)));
    assert_eq!(Layout::choose(1 << 20, Some(1 << 20)), None);
    for file_bytes in (1 << 19..1 << 28).step_by(999_999) {
        let (bytes, count) = Layout::choose(file_bytes, None).expect("room for four");
        assert!(count >= SEGMENTS_MIN && SEGMENTS_AT + u64::from(bytes) * u64::from(count) <= file_bytes);
    }
}
