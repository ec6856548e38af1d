//! Owns the reading of server-sent events, as far as pgvalet sends them.

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub event: String,
    pub id: Option<String>,
    pub data: String,
}

/// Whether the reader wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    More,
    Enough,
}

/// An event's line longer than this isn't pgvalet's: a reload's record of 10,000 sessions is some 8 MB.
const LONGEST: usize = 256 << 20;

/// Makes events of bytes, however they come.
#[derive(Debug, Default)]
pub struct Reader {
    rest: Vec<u8>,
    next: Told,
}

impl Reader {
    /// Takes bytes in, and hands the events over that they complete.
    pub fn read(&mut self, bytes: &[u8], take: &mut dyn FnMut(Told) -> Flow) -> Flow {
        for byte in bytes {
            if *byte != b'\n' {
                self.rest.push(*byte);
                if self.rest.len() > LONGEST {
                    return Flow::Enough;
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.rest).into_owned();
            self.rest.clear();
            if let Some(told) = self.line(&line)
                && take(told) == Flow::Enough
            {
                return Flow::Enough;
            }
        }
        Flow::More
    }

    /// One line; an empty one ends an event. Comments are heartbeats.
    fn line(&mut self, line: &str) -> Option<Told> {
        if line.is_empty() {
            let told = std::mem::take(&mut self.next);
            return (!told.event.is_empty() || !told.data.is_empty()).then_some(told);
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.next.event),
            "id" => self.next.id = Some(value.to_owned()),
            "data" => self.next.data.push_str(value),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = ": heartbeat\n\nevent: lease.parked\nid: 1a-7\ndata: {\"a\":1}\n\nevent: done\ndata: {}\n\n";
        for size in 1..text.len() {
            let (mut reader, mut all) = (Reader::default(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                reader.read(chunk, &mut |told| {
                    all.push(told);
                    Flow::More
                });
            }
            assert_eq!(all.len(), 2, "{size}: {all:?}");
            assert_eq!(
                (&*all[0].event, all[0].id.as_deref()),
                ("lease.parked", Some("1a-7"))
            );
            assert_eq!(all[1].data, "{}");
        }
    }
}
