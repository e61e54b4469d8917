//! Money and days: small types that cannot be mixed up, and cannot be read wrongly.

use std::{fmt, iter::Sum, ops::AddAssign};

use serde::{Deserialize, Serialize};

/// An amount of money in cents, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cents(
    /// How many cents.
    pub u64,
);

impl Cents {
    /// Reads dollars such as `11.77`, `12` or `0.5`. A third decimal is refused, not rounded.
    #[must_use]
    pub fn from_dollars(text: &str) -> Option<Self> {
        let (dollars, cents) = text.split_once('.').unwrap_or((text, "0"));
        let scale = match cents.len() {
            1 => 10,
            2 => 1,
            _ => return None,
        };
        let cents = digits(cents)?.checked_mul(scale)?;
        digits(dollars)?.checked_mul(100)?.checked_add(cents).map(Self)
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("${}.{:02}", grouped(self.0 / 100), self.0 % 100))
    }
}

impl AddAssign for Cents {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sum for Cents {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.map(|amount| amount.0).sum())
    }
}

/// A day of the calendar, written as in the data: `19970131`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Day(u32);

impl Day {
    /// Reads `yyyymmdd`; `None` for a day that does not exist.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 8 {
            return None;
        }
        let day = Self(u32::try_from(digits(text)?).ok()?);
        let (year, month, of_month) = day.parts();
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => return None,
        };
        (1..=length).contains(&of_month).then_some(day)
    }

    /// Year, month and day of the month, from 1.
    #[must_use]
    pub const fn parts(self) -> (u32, u32, u32) {
        (self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.parts();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// Digits and nothing else: no sign, no blank.
#[must_use]
pub fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A number for people: `6,919`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let plain = number.to_string();
    let mut text = String::with_capacity(plain.len() + plain.len() / 3);
    for (index, digit) in plain.chars().enumerate() {
        if index > 0 && (plain.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_to_the_cent() {
        let cents = |text| Cents::from_dollars(text).map(|cents| cents.0);
        assert_eq!(cents("29.33"), Some(2_933));
        assert_eq!(cents("0.00"), Some(0));
        assert_eq!(cents("0.07"), Some(7));
        assert_eq!(cents("12.5"), Some(1_250));
        assert_eq!(cents("300"), Some(30_000));
        // As a float this one would lose its last cents.
        assert_eq!(cents("90071992547409.93"), Some(9_007_199_254_740_993));
        for odd in ["", ".", "1.", ".5", "-1.00", "+1.00", "1.234", "1,00", "1e3", "1.2.3", "NaN"] {
            assert_eq!(cents(odd), None, "{odd}");
        }
        assert_eq!(cents("184467440737095516.16"), None, "more than fits");
    }

    #[test]
    fn every_amount_is_read_as_it_is_written() {
        for amount in (0..200_000).map(Cents) {
            let text = format!("{}.{:02}", amount.0 / 100, amount.0 % 100);
            assert_eq!(Cents::from_dollars(&text), Some(amount));
        }
        assert_eq!(Cents(23_936_012).to_string(), "$239,360.12");
    }

    #[test]
    fn days_exist() {
        assert_eq!(Day::parse("19970101").map(|day| day.to_string()), Some("1997-01-01".into()));
        assert!(Day::parse("20000229").is_some() && Day::parse("19960229").is_some());
        for odd in
            ["19970229", "19000229", "19971301", "19970100", "19970431", "1997011", "+9970101"]
        {
            assert_eq!(Day::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let texts = [0, 999, 1_000, 69_659, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "69,659", "1,234,567"]);
    }
}
