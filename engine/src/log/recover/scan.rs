//! Reading segments as they lie: by their footer, or block by block.

use std::rc::Rc;

use super::{
    super::{
        format::{BLOCK_HEADER, BlockHeader, FooterEntry, Head, Layout, RECORD_ALIGN, RecordHeader},
        reclaim::read_footer,
    },
    is,
};
use crate::device::{Block, Device, DeviceError, IO_MAX, PAGE};

/// Pages that may be unreadable before the device is given up.
const UNREADABLE_MAX: u32 = 256;

/// What the first page of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadSeen {
    Lap,
    Void,
    Damaged,
}

/// What to do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It holds nothing.
    Free,
    /// Believe the footer.
    Footer,
    /// Believe what can be read block by block.
    Scan,
    /// The same, and nothing in it or before it is sure to be the newest.
    ScanDamaged,
}

/// Head, sound footer of the same lap -> take.
pub(super) const SEGMENTS: [(HeadSeen, Option<bool>, Take); 4] = [
    (HeadSeen::Void, None, Take::Free),
    (HeadSeen::Lap, Some(true), Take::Footer),
    (HeadSeen::Lap, Some(false), Take::Scan),
    (HeadSeen::Damaged, None, Take::ScanDamaged),
];

pub(super) fn take_of(head: HeadSeen, footer: bool) -> Take {
    let row = SEGMENTS.iter().find(|row| row.0 == head && is(&row.1, &footer));
    row.map_or(Take::ScanDamaged, |row| row.2)
}

/// One segment that holds something.
pub(super) struct Lap {
    pub(super) segment: u32,
    pub(super) epoch: u32,
    pub(super) take: Take,
    /// Sequences of its blocks: first, and after the last if known.
    pub(super) first_block: u64,
    pub(super) next_block: Option<u64>,
    /// Bytes used, head included.
    pub(super) used: u32,
    pub(super) records: Vec<FooterEntry>,
    /// Scanned: the blocks found, in order, and whether each is whole.
    pub(super) blocks: Vec<(BlockHeader, bool)>,
}

impl Lap {
    /// The sequence after the last block that was read.
    pub(super) fn found_end(&self) -> u64 {
        self.blocks.last().map_or(self.first_block, |(block, _)| block.sequence + 1)
    }

    /// Whether a block that must have been whole is missing or broken. `end`: the first sequence that is not its.
    pub(super) fn hides(&self, end: Option<u64>, must_be_whole: impl Fn(u64) -> bool) -> bool {
        let found_end = self.found_end();
        let mut expected = self.first_block;
        for (block, whole) in &self.blocks {
            if (expected..block.sequence).any(&must_be_whole) || (!whole && must_be_whole(block.sequence)) {
                return true;
            }
            expected = block.sequence + 1;
        }
        (found_end..end.unwrap_or(found_end)).any(must_be_whole)
    }
}

/// Reads what may not be readable.
pub(super) struct Reader<D> {
    device: Rc<D>,
    layout: Layout,
    unreadable: u32,
}

impl<D: Device> Reader<D> {
    pub(super) fn new(device: Rc<D>, layout: Layout) -> Self {
        Self { device, layout, unreadable: 0 }
    }

    /// Reads; pages the device cannot read are zero, and so damaged.
    pub(super) async fn read(&mut self, offset: u64, len: usize) -> Result<Block, DeviceError> {
        let failed = match self.device.read(offset, len).await {
            Ok(block) => return Ok(block),
            Err(failed) => failed,
        };
        tracing::warn!(error = %failed, "unreadable flash");
        let mut block = self.device.block(len);
        for (i, bytes) in block.chunks_mut(PAGE).enumerate() {
            match self.device.read(offset + (i * PAGE) as u64, PAGE).await {
                Ok(page) => bytes.copy_from_slice(&page),
                Err(failed) => {
                    bytes.fill(0);
                    self.unreadable += 1;
                    if self.unreadable > UNREADABLE_MAX {
                        return Err(failed);
                    }
                }
            }
        }
        Ok(block)
    }

    /// What a segment holds; `None`: nothing.
    pub(super) async fn lap(&mut self, segment: u32) -> Result<Option<Lap>, DeviceError> {
        let page = self.read(self.layout.segment_at(segment), PAGE).await?;
        let head = Head::decode(self.layout.salt, segment, &page);
        let seen = match head {
            Some(Head { epoch: 0, .. }) => HeadSeen::Void,
            Some(_) => HeadSeen::Lap,
            None => HeadSeen::Damaged,
        };
        let footer = match seen {
            HeadSeen::Lap => read_footer(&*self.device, &self.layout, segment).await.unwrap_or_else(|failed| {
                tracing::warn!(error = %failed, "unreadable footer");
                None
            }),
            _ => None,
        };
        let epoch = head.map(|head| head.epoch);
        let footer = footer.filter(|(trailer, _)| Some(trailer.epoch) == epoch);
        let take = take_of(seen, footer.is_some());
        match (take, footer) {
            (Take::Free, _) => Ok(None),
            (Take::Footer, Some((trailer, records))) => Ok(Some(Lap {
                segment,
                epoch: trailer.epoch,
                take,
                first_block: trailer.first_block,
                next_block: Some(trailer.next_block),
                used: trailer.used,
                records,
                blocks: Vec::new(),
            })),
            (Take::Scan, _) => self.scan(segment, epoch, head.map(|head| head.first_block), take).await,
            _ => self.scan(segment, None, None, take).await,
        }
    }

    /// Reads a segment block by block. Without an epoch the highest one found is its.
    async fn scan(
        &mut self,
        segment: u32,
        epoch: Option<u32>,
        first_block: Option<u64>,
        take: Take,
    ) -> Result<Option<Lap>, DeviceError> {
        let mut lap = Lap {
            segment,
            epoch: epoch.unwrap_or(0),
            take,
            first_block: first_block.unwrap_or(0),
            next_block: None,
            used: PAGE as u32,
            records: Vec::new(),
            blocks: Vec::new(),
        };
        let end = self.layout.segment_bytes as usize - PAGE;
        let mut at = PAGE;
        while at < end {
            let window_at = at;
            let window = self.read(self.layout.segment_at(segment) + at as u64, IO_MAX.min(end - at)).await?;
            let mut cut = false;
            while at - window_at < window.len() && !cut {
                let bytes = &window[at - window_at..];
                let block =
                    BlockHeader::decode(&self.layout, segment, at, bytes).filter(|block| block.epoch >= lap.epoch);
                match block.filter(|block| epoch.is_none_or(|epoch| epoch == block.epoch)) {
                    None => at += PAGE,
                    // It goes on in the next window, which then begins with it.
                    Some(block) if block.used as usize > bytes.len() && at > window_at => cut = true,
                    Some(block) => {
                        if block.epoch > lap.epoch {
                            lap = Lap { epoch: block.epoch, first_block: block.sequence, used: PAGE as u32, ..lap };
                            lap.records.clear();
                            lap.blocks.clear();
                        }
                        let whole = self.walk(&block, &bytes[..bytes.len().min(block.used as usize)], &mut lap.records);
                        at += (block.used as usize).next_multiple_of(PAGE);
                        lap.used = at as u32;
                        lap.blocks.push((block, whole));
                    }
                }
            }
        }
        Ok((lap.epoch > 0).then_some(lap))
    }

    /// Collects the records of a block that speak for keys; `false` when something in it is broken.
    fn walk(&self, block: &BlockHeader, bytes: &[u8], records: &mut Vec<FooterEntry>) -> bool {
        let mut found = 0;
        let mut whole = bytes.len() == block.used as usize;
        let mut at = BLOCK_HEADER;
        while at < bytes.len() {
            let position = ((block.offset as usize + at) / RECORD_ALIGN) as u32;
            let header = RecordHeader::decode(&self.layout, &bytes[at..]);
            let header = header.filter(|header| (header.epoch, header.position) == (block.epoch, position));
            match header.map(|header| (header, header.record_bytes(&self.layout))) {
                Some((header, len)) if at + len <= bytes.len() => {
                    if header.kind.is_listed() {
                        records.push(FooterEntry::of(&self.layout, &header));
                    }
                    found += 1;
                    at += len.next_multiple_of(RECORD_ALIGN);
                }
                // A later record may be sound: it begins at some multiple of the alignment.
                _ => {
                    whole = false;
                    at += RECORD_ALIGN;
                }
            }
        }
        whole && found == block.records
    }
}
