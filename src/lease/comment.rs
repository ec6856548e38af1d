//! Owns the reading of tags in SQL comments: sqlcommenter's `key='value'`, and the `key:value` of Rails' query logs.
//!
//! Refuses to be called per message: a text is kept as it is, and read when somebody looks.

use crate::lease::book::LastStatement;

/// How far from either end of a text a comment may stand, in bytes.
const REACH: usize = 1024;

/// How much of a tag is kept, in characters.
const KEPT: usize = 200;

/// The tags that say who sent a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    pub application: Option<String>,
    pub controller: Option<String>,
    pub action: Option<String>,
    pub job: Option<String>,
    pub route: Option<String>,
    pub source_location: Option<String>,
    pub traceparent: Option<String>,
}

impl Tags {
    /// The name that they make: the job, the controller with its action, the route, or the application.
    #[must_use]
    pub fn owner(self) -> Option<String> {
        let controller = match (self.controller, self.action) {
            (Some(controller), Some(action)) => Some(format!("{controller}#{action}")),
            (controller, _) => controller,
        };
        self.job.or(controller).or(self.route).or(self.application)
    }

    fn slot(&mut self, key: &str) -> Option<&mut Option<String>> {
        match key {
            "application" => Some(&mut self.application),
            "controller" => Some(&mut self.controller),
            "action" => Some(&mut self.action),
            "job" => Some(&mut self.job),
            "route" => Some(&mut self.route),
            "source_location" => Some(&mut self.source_location),
            "traceparent" => Some(&mut self.traceparent),
            _ => None,
        }
    }

    /// Takes in `key:value` or `key='value'`; the first word on a key counts.
    fn take(&mut self, pair: &str) {
        let Some(at) = pair.find([':', '=']) else {
            return;
        };
        let (key, value) = (pair[..at].trim(), pair[at + 1..].trim());
        let value = match value.strip_prefix('\'') {
            Some(quoted) => decode(
                &quoted
                    .strip_suffix('\'')
                    .unwrap_or(quoted)
                    .replace("\\'", "'"),
            ),
            None => value.to_owned(),
        };
        if let Some(slot) = self.slot(key).filter(|slot| slot.is_none()) {
            *slot =
                Some(value.chars().take(KEPT).collect()).filter(|value: &String| !value.is_empty());
        }
    }
}

/// The tags in the first and the last comment of a statement.
#[must_use]
pub fn tags(statement: &LastStatement) -> Tags {
    let mut tags = Tags::default();
    let (Some(head), Some(tail)) = (statement.text(), statement.end()) else {
        return tags;
    };
    for comment in [trailing(tail), leading(head)].into_iter().flatten() {
        for pair in pairs(&String::from_utf8_lossy(comment)) {
            tags.take(pair);
        }
    }
    tags
}

/// What the comment in front of a text says.
fn leading(text: &[u8]) -> Option<&[u8]> {
    let text = text[..text.len().min(REACH)].trim_ascii_start();
    let inner = text.strip_prefix(b"/*")?;
    let end = inner.windows(2).position(|two| two == b"*/")?;
    Some(&inner[..end])
}

/// What the comment behind a text says.
fn trailing(text: &[u8]) -> Option<&[u8]> {
    let mut text = text[text.len().saturating_sub(REACH)..].trim_ascii_end();
    while let Some(rest) = text.strip_suffix(b";") {
        text = rest.trim_ascii_end();
    }
    let inner = text.strip_suffix(b"*/")?;
    let start = inner.windows(2).rposition(|two| two == b"/*")?;
    Some(&inner[start + 2..])
}

/// The pairs of a comment: parted by commas outside of quotes.
fn pairs(comment: &str) -> Vec<&str> {
    let (mut pairs, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, letter) in comment.char_indices() {
        match letter {
            '\'' if !escaped => quoted = !quoted,
            ',' if !quoted => {
                pairs.push(&comment[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        escaped = letter == '\\' && !escaped;
    }
    pairs.push(&comment[start..]);
    pairs
}

/// Undoes percent-encoding; what isn't any stays.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        match bytes[at..] {
            [b'%', high, low, ..] if hex(high).is_some() && hex(low).is_some() => {
                let value = hex(high).zip(hex(low)).map(|(high, low)| high * 16 + low);
                out.extend(value.and_then(|value| u8::try_from(value).ok()));
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(sql: &str) -> Tags {
        let mut statement = LastStatement::None;
        statement.set(sql.as_bytes());
        tags(&statement)
    }

    fn owner(sql: &str) -> Option<String> {
        of(sql).owner()
    }

    #[test]
    fn query_log_tags_are_read_before_and_behind_a_statement() {
        let rails = "/*action='index',application='Shop',controller='users'*/";
        assert_eq!(
            owner(&format!("SELECT 1 {rails}")).as_deref(),
            Some("users#index")
        );
        let legacy =
            "/*application:Shop,job:MailJob,source_location:app/jobs/mail_job.rb:12:in `perform'*/";
        assert_eq!(
            owner(&format!("{legacy} SELECT 1;")).as_deref(),
            Some("MailJob")
        );
        let place = of(&format!("{legacy} SELECT 1")).source_location;
        assert_eq!(
            place.as_deref(),
            Some("app/jobs/mail_job.rb:12:in `perform'")
        );
    }

    #[test]
    fn sqlcommenter_values_are_decoded() {
        let tags = of(
            "SELECT 1 /*controller='admin%2Fusers',route='%5Epolls/%24,%201',\
             traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/ ;",
        );
        assert_eq!(tags.controller.as_deref(), Some("admin/users"));
        assert_eq!(tags.route.as_deref(), Some("^polls/$, 1"));
        assert!(tags.traceparent.is_some());
    }

    #[test]
    fn a_comment_behind_a_long_text_is_found() {
        let long = format!("SELECT {} /*job:Import*/", "1, ".repeat(2000));
        assert_eq!(owner(&long).as_deref(), Some("Import"));
        let mut statement = LastStatement::None;
        statement.set(long.as_bytes());
        assert_eq!(statement.text().map(<[u8]>::len), Some(LastStatement::KEPT));
    }

    #[test]
    fn other_comments_say_nothing() {
        for sql in [
            "SELECT 1 /* hint: none */",
            "SELECT '/*job:X*/'",
            "SELECT 1 /*job:*/",
            "SELECT 1 /*job:X",
            "/* */ SELECT 1",
            "SELECT 1",
        ] {
            assert_eq!(owner(sql), None, "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut statement = LastStatement::None;
            statement.set(&sql);
            let _ = tags(&statement);
        }

        #[test]
        fn any_comment_is_read_without_a_panic(comment in "[a-z'=:,%\\\\ /*é0-9]{0,80}") {
            let _ = owner(&format!("/*{comment}*/ SELECT 1 /*job='{comment}'*/"));
        }
    }
}
