//! Reads files of purchases.
//!
//! A line has five columns (customer, customer in the sample, date, CDs, dollars) or four (without
//! the second); each line says by its columns which it is. Empty lines are skipped, and so is a
//! heading in the first line. Everything else that is no purchase is a bad line: a wrong number of
//! columns, a customer or number of CDs that is no whole number, no CDs at all, a date that does not
//! exist, an amount that is no dollars and cents. A price of 0.00 is a purchase: a free CD.

use std::{collections::HashSet, fmt};

use crate::units::{Cents, Day, digits};

/// One purchase of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    /// Who bought.
    pub customer: u32,
    /// When.
    pub day: Day,
    /// How many CDs.
    pub cds: u32,
    /// For how much.
    pub price: Cents,
}

/// A line that is no purchase.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub number: usize,
    /// Why it is none.
    pub problem: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.number, self.problem)
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Input {
    /// In the order of their days, as the shop once saw them; within a day as in the file.
    pub purchases: Vec<Purchase>,
    /// In the order of the file.
    pub bad_lines: Vec<BadLine>,
}

impl Input {
    /// Reads the contents of a file. Nothing in it stops the reading.
    #[must_use]
    pub fn parse(contents: &[u8]) -> Self {
        let mut input = Self::default();
        for (number, line) in (1..).zip(contents.split(|byte| *byte == b'\n')) {
            match parse_line(line, number == 1) {
                Ok(Some(purchase)) => input.purchases.push(purchase),
                Ok(None) => {}
                Err(problem) => input.bad_lines.push(BadLine { number, problem }),
            }
        }
        input.purchases.sort_by_key(|purchase| purchase.day);
        input
    }

    /// How many different customers bought.
    #[must_use]
    pub fn customers(&self) -> usize {
        let customers: HashSet<_> = self.purchases.iter().map(|one| one.customer).collect();
        customers.len()
    }
}

/// The purchase of a line, or `None` for a line that need not have one.
fn parse_line(line: &[u8], is_first: bool) -> Result<Option<Purchase>, String> {
    let line = str::from_utf8(line).map_err(|_| "the line is not UTF-8 text".to_owned())?;
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (customer, day, cds, price) = match columns[..] {
        [] => return Ok(None),
        ["customer_id", ..] if is_first => return Ok(None),
        [customer, day, cds, price] => (customer, day, cds, price),
        [customer, _in_sample, day, cds, price] => (customer, day, cds, price),
        [_] => return Err("1 column; a purchase has 4 or 5".to_owned()),
        _ => return Err(format!("{} columns; a purchase has 4 or 5", columns.len())),
    };
    Ok(Some(Purchase {
        customer: whole(customer).ok_or_else(|| no("customer id", customer))?,
        day: Day::parse(day).ok_or_else(|| no("date of the form yyyymmdd", day))?,
        cds: whole(cds).filter(|cds| *cds > 0).ok_or_else(|| no("number of CDs from 1", cds))?,
        price: Cents::from_dollars(price)
            .ok_or_else(|| no("amount of dollars and cents", price))?,
    }))
}

fn whole(text: &str) -> Option<u32> {
    digits(text).and_then(|number| u32::try_from(number).ok())
}

/// Says what a column is not. What it is may be long, and may hold codes that terminals obey.
fn no(what: &str, text: &str) -> String {
    let mut shown: String = text.chars().take(30).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?} is no {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = include_bytes!("../data/CDNOW_sample.txt");

    fn only(line: &str) -> Result<Purchase, String> {
        let mut input = Input::parse(line.as_bytes());
        match (input.purchases.pop(), input.bad_lines.pop()) {
            (Some(purchase), None) => Ok(purchase),
            (None, Some(bad)) => Err(bad.to_string()),
            both => panic!("one of both, not {both:?}"),
        }
    }

    #[test]
    fn the_sample_is_what_its_readme_says() {
        let input = Input::parse(SAMPLE);
        assert_eq!((input.purchases.len(), input.customers()), (6_919, 2_357));
        assert_eq!(input.bad_lines, []);
        assert_eq!(input.purchases.iter().map(|one| one.cds).sum::<u32>(), 16_479);
        let total: Cents = input.purchases.iter().map(|one| one.price).sum();
        assert_eq!(total, Cents(24_409_194));
        assert_eq!(input.purchases.iter().filter(|one| one.price == Cents(0)).count(), 8);
        let days: HashSet<_> = input.purchases.iter().map(|one| one.day).collect();
        assert_eq!(days.len(), 545);
        assert!(input.purchases.is_sorted_by_key(|one| one.day));
    }

    #[test]
    fn both_formats_say_the_same() {
        let expected = Purchase {
            customer: 4,
            day: Day::parse("19970118").unwrap(),
            cds: 2,
            price: Cents(2_973),
        };
        assert_eq!(only(" 00004 0001 19970118  2   29.73").unwrap(), expected);
        assert_eq!(only(" 00004 19970118  2   29.73\r\n").unwrap(), expected);
    }

    #[test]
    fn headings_and_empty_lines_are_no_bad_lines() {
        let file = " customer_id  date number_of_cds  dollar_value\n\n \n 1 19970101 1 11.77\n";
        let input = Input::parse(file.as_bytes());
        assert_eq!((input.purchases.len(), input.bad_lines.len()), (1, 0));
        assert_eq!(Input::parse(b"").purchases, []);
        let again = format!("1 19970101 1 11.77\n{file}");
        assert_eq!(Input::parse(again.as_bytes()).bad_lines.len(), 1, "a heading further down");
    }

    #[test]
    fn bad_lines_say_where_and_what() {
        let cases = [
            ("1 19970101 1", "1: 3 columns; a purchase has 4 or 5"),
            ("1 1 19970101 1 1.00 1", "1: 6 columns; a purchase has 4 or 5"),
            ("x 19970101 1 1.00", "1: \"x\" is no customer id"),
            ("4294967296 19970101 1 1.00", "1: \"4294967296\" is no customer id"),
            ("1 19970229 1 1.00", "1: \"19970229\" is no date of the form yyyymmdd"),
            ("1 19970101 0 1.00", "1: \"0\" is no number of CDs from 1"),
            ("1 19970101 -3 1.00", "1: \"-3\" is no number of CDs from 1"),
            ("1 19970101 1 -1.00", "1: \"-1.00\" is no amount of dollars and cents"),
            ("1 19970101 1 1.005", "1: \"1.005\" is no amount of dollars and cents"),
            ("1 19970101 1 \u{1b}[2J", "1: \"\\u{1b}[2J\" is no amount of dollars and cents"),
        ];
        for (line, problem) in cases {
            assert_eq!(only(line).unwrap_err(), problem);
        }
        let input = Input::parse(b"1 19970101 1 1.00\n\xff\xfe\n1 19970101 1 1.00\n");
        assert_eq!(input.purchases.len(), 2);
        assert_eq!(input.bad_lines[0].to_string(), "2: the line is not UTF-8 text");
    }
}
