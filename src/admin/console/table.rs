//! Owns rows on the wire: what a column is, and how a value is written in text and in binary.

use bytes::{BufMut, BytesMut};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::messages::data::DataRow;

/// A column's name and type.
pub(super) type Column = (&'static str, Kind);

/// A column's type, as PgBouncer has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int,
    Big,
    Numeric,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Text(String),
    Number(u64),
}

/// One row.
pub(super) type Row = Vec<Cell>;

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<bool> for Cell {
    fn from(flag: bool) -> Self {
        Self::Number(flag.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row of values of several types.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::admin::console::table::Cell::from($value)),*] };
}
pub(super) use row;

/// The columns as PostgreSQL describes them, in the formats that a portal asks for.
pub(super) fn describe(columns: &[Column], formats: Option<&Format>) -> Vec<FieldInfo> {
    let describe = |(index, (name, kind)): (usize, &Column)| {
        let kind = match kind {
            Kind::Text => Type::TEXT,
            Kind::Int => Type::INT4,
            Kind::Big => Type::INT8,
            Kind::Numeric => Type::NUMERIC,
        };
        FieldInfo::new((*name).to_owned(), None, None, kind, format(formats, index))
    };
    columns.iter().enumerate().map(describe).collect()
}

/// The format of a column; text where the client named fewer formats than there are columns.
fn format(formats: Option<&Format>, index: usize) -> FieldFormat {
    match formats {
        None | Some(Format::UnifiedText) => FieldFormat::Text,
        Some(Format::UnifiedBinary) => FieldFormat::Binary,
        Some(Format::Individual(each)) if each.get(index) == Some(&1) => FieldFormat::Binary,
        Some(Format::Individual(_)) => FieldFormat::Text,
    }
}

/// A row on the wire.
pub(super) fn encode(columns: &[Column], row: &Row, formats: Option<&Format>) -> DataRow {
    let mut data = BytesMut::new();
    for (index, ((_, kind), cell)) in columns.iter().zip(row).enumerate() {
        let value = match (cell, format(formats, index)) {
            (Cell::Null, _) => {
                data.put_i32(-1);
                continue;
            }
            (Cell::Text(text), _) => text.clone().into_bytes(),
            (Cell::Number(number), FieldFormat::Text) => text(*kind, *number),
            (Cell::Number(number), FieldFormat::Binary) => binary(*kind, *number),
        };
        // Texts are short, and at most a statement long.
        data.put_i32(i32::try_from(value.len()).unwrap_or(0));
        data.extend_from_slice(&value);
    }
    DataRow::new(data, i16::try_from(columns.len()).unwrap_or(i16::MAX))
}

fn text(kind: Kind, number: u64) -> Vec<u8> {
    match kind {
        Kind::Int => int(number).to_string(),
        Kind::Big => big(number).to_string(),
        Kind::Text | Kind::Numeric => number.to_string(),
    }
    .into_bytes()
}

fn binary(kind: Kind, number: u64) -> Vec<u8> {
    match kind {
        Kind::Text => number.to_string().into_bytes(),
        Kind::Int => int(number).to_be_bytes().to_vec(),
        Kind::Big => big(number).to_be_bytes().to_vec(),
        Kind::Numeric => numeric(number),
    }
}

fn int(number: u64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// PostgreSQL's binary numeric: how many digits to the base 10,000, the weight of the first, sign, scale, the digits.
fn numeric(mut number: u64) -> Vec<u8> {
    let mut digits = Vec::new();
    while number > 0 {
        // A remainder of 10,000 fits.
        digits.push(u16::try_from(number % 10_000).unwrap_or(0));
        number /= 10_000;
    }
    let count = u16::try_from(digits.len()).unwrap_or(0);
    let head = [count, count.saturating_sub(1), 0, 0];
    let all = head.into_iter().chain(digits.into_iter().rev());
    all.flat_map(u16::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_written_as_postgresql_reads_them() {
        assert_eq!(numeric(0), [0; 8]);
        assert_eq!(numeric(7), [0, 1, 0, 0, 0, 0, 0, 0, 0, 7]);
        // 1 2345 6789: three digits, the first of them of weight 2.
        let large = [0, 3, 0, 2, 0, 0, 0, 0, 0, 1, 0x09, 0x29, 0x1a, 0x85];
        assert_eq!(numeric(123_456_789), large);
    }

    #[test]
    fn figures_beyond_a_type_stay_at_its_end() {
        assert_eq!(binary(Kind::Int, u64::MAX), i32::MAX.to_be_bytes());
        assert_eq!(text(Kind::Big, u64::MAX), i64::MAX.to_string().into_bytes());
    }
}
