//! Records of PAX headers. The tar crate writes them, but cannot read values with line breaks in them,
//! which capabilities may have.

/// Before the name of an extended attribute.
pub(crate) const XATTR: &str = "SCHILY.xattr.";

/// The records of a header: `LENGTH KEY=VALUE\n` each; `None` when it is malformed.
pub(crate) fn parse(mut data: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    // Some writers fill up with zeros.
    while data.first().is_some_and(|&b| b != 0) {
        let space = data.iter().position(|&b| b == b' ')?;
        let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
        let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&b| b == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        data = &data[length..];
    }
    Some(records)
}

/// A time of a record: seconds, which may be negative or broken.
pub(crate) fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// The same time as a text.
pub(crate) fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => {
            let rest = 1_000_000_000 - nanoseconds;
            let sign = if seconds == -1 { "-" } else { "" };
            format!("{sign}{}.{rest:09}", seconds + 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_anything() {
        let data = b"14 k=a\nb=c\nd \n5 x=\n\0\0";
        let records = parse(data).unwrap();
        assert_eq!(
            records,
            [(&b"k"[..], &b"a\nb=c\nd "[..]), (&b"x"[..], &b""[..])]
        );
        for bad in [
            &b"9 k=v\n"[..],
            b"x k=v\n",
            b"6 k=vv\n",
            b"5 kv\n",
            b"0 \n",
            b"1",
        ] {
            assert_eq!(parse(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_survive_their_text() {
        for (seconds, nanoseconds) in [
            (0, 0),
            (5, 0),
            (5, 1),
            (-1, 500_000_000),
            (-2, 1),
            (-3, 0),
            (i64::MIN + 1, 7),
        ] {
            let text = time(seconds, nanoseconds);
            assert_eq!(
                parse_time(text.as_bytes()),
                Some((seconds, nanoseconds)),
                "{text}"
            );
        }
        assert_eq!(parse_time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(parse_time(b"1.x"), None);
    }
}
