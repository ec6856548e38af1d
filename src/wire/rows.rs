//! Owns the messages of a small answer of ours: rows of text, and what comes around them (protocol chapter 55.7).

use crate::wire::extended::write_frame;

/// The oid of type `text`.
const TEXT: u32 = 25;

/// Appends the description of rows with these columns, all of type text.
pub fn row_description(out: &mut Vec<u8>, columns: &[&str]) {
    let mut body = count(columns.len());
    for column in columns {
        body.extend_from_slice(column.as_bytes());
        // No table, no column number; a length that varies, no modifier, the text format.
        body.extend_from_slice(&[0; 7]);
        body.extend_from_slice(&TEXT.to_be_bytes());
        body.extend_from_slice(&(-1_i16).to_be_bytes());
        body.extend_from_slice(&(-1_i32).to_be_bytes());
        body.extend_from_slice(&[0; 2]);
    }
    write_frame(out, b'T', &body);
}

/// Appends a row. `None` is NULL.
pub fn data_row(out: &mut Vec<u8>, values: &[Option<String>]) {
    let mut body = count(values.len());
    for value in values {
        match value {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(text) => {
                let length = u32::try_from(text.len()).expect("our own texts are short");
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
        }
    }
    write_frame(out, b'D', &body);
}

/// Appends a CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    write_frame(out, b'C', &[tag.as_bytes(), b"\0"].concat());
}

/// Appends ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    write_frame(out, b'1', b"");
}

/// Appends BindComplete.
pub fn bind_complete(out: &mut Vec<u8>) {
    write_frame(out, b'2', b"");
}

/// Appends CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    write_frame(out, b'3', b"");
}

/// Appends NoData.
pub fn no_data(out: &mut Vec<u8>) {
    write_frame(out, b'n', b"");
}

/// Appends the description of no parameters.
pub fn no_parameters(out: &mut Vec<u8>) {
    write_frame(out, b't', &[0; 2]);
}

fn count(count: usize) -> Vec<u8> {
    let count = u16::try_from(count).expect("our own rows have few columns");
    count.to_be_bytes().to_vec()
}
