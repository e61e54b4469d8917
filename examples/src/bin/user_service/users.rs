//! The customers of the sample and what their orders tell of them.

use std::collections::BTreeMap;

use postrider_examples::{
    input::{Input, Purchase},
    units::Cents,
};
use serde::Serialize;

const SAMPLE: &[u8] = include_bytes!("../../../data/CDNOW_sample.txt");

/// Everybody who ordered.
#[derive(Debug)]
pub(crate) struct Users(BTreeMap<u32, User>);

/// Somebody with at least one order.
#[derive(Debug)]
pub(crate) struct User {
    id: u32,
    /// By their days.
    purchases: Vec<Purchase>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Info {
    user_id: u32,
    first_order: String,
    last_order: String,
    orders: usize,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Profile {
    user_id: u32,
    orders: usize,
    cds: u32,
    spent_cents: u64,
    returning: bool,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Orders {
    user_id: u32,
    orders: Vec<Order>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Order {
    date: String,
    cds: u32,
    cents: u64,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Preferences {
    user_id: u32,
    /// The number of CDs that most of the orders have, the smaller one of two.
    usual_cds: u32,
    /// The month of the year, from 1, with the most orders, the earlier one of two.
    usual_month: u32,
}

impl Users {
    pub(crate) fn of_the_sample() -> Self {
        Self::of(Input::parse(SAMPLE))
    }

    fn of(input: Input) -> Self {
        let mut users = BTreeMap::new();
        for purchase in input.purchases {
            let id = purchase.customer;
            let user = users.entry(id).or_insert_with(|| User { id, purchases: Vec::new() });
            user.purchases.push(purchase);
        }
        Self(users)
    }

    pub(crate) fn get(&self, id: u32) -> Option<&User> {
        self.0.get(&id)
    }
}

impl User {
    pub(crate) fn info(&self) -> Info {
        let day = |purchase: Option<&Purchase>| {
            purchase.map(|purchase| purchase.day.to_string()).unwrap_or_default()
        };
        Info {
            user_id: self.id,
            first_order: day(self.purchases.first()),
            last_order: day(self.purchases.last()),
            orders: self.purchases.len(),
        }
    }

    pub(crate) fn profile(&self) -> Profile {
        let spent: Cents = self.purchases.iter().map(|purchase| purchase.price).sum();
        Profile {
            user_id: self.id,
            orders: self.purchases.len(),
            cds: self.purchases.iter().map(|purchase| purchase.cds).sum(),
            spent_cents: spent.0,
            returning: self.purchases.len() > 1,
        }
    }

    pub(crate) fn orders(&self) -> Orders {
        let order = |purchase: &Purchase| Order {
            date: purchase.day.to_string(),
            cds: purchase.cds,
            cents: purchase.price.0,
        };
        Orders { user_id: self.id, orders: self.purchases.iter().map(order).collect() }
    }

    pub(crate) fn preferences(&self) -> Preferences {
        Preferences {
            user_id: self.id,
            usual_cds: most_frequent(self.purchases.iter().map(|purchase| purchase.cds)),
            usual_month: most_frequent(
                self.purchases.iter().map(|purchase| purchase.day.parts().1),
            ),
        }
    }
}

/// The most frequent number, the least of several.
fn most_frequent(numbers: impl Iterator<Item = u32>) -> u32 {
    let mut counts = BTreeMap::new();
    for number in numbers {
        *counts.entry(number).or_insert(0_usize) += 1;
    }
    let best = counts.iter().rev().max_by_key(|(_, count)| **count);
    best.map_or(0, |(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_its_customers_and_their_orders() {
        let users = Users::of_the_sample();
        assert_eq!(users.0.len(), 2_357);
        let profiles: Vec<_> = users.0.values().map(User::profile).collect();
        assert_eq!(profiles.iter().map(|profile| profile.orders).sum::<usize>(), 6_919);
        assert_eq!(profiles.iter().map(|profile| profile.spent_cents).sum::<u64>(), 24_409_194);
        assert!(users.get(1).is_none());
    }

    #[test]
    fn orders_tell_what_somebody_likes() {
        let file = "7 19970105 2 10.00\n7 19970302 3 5.00\n7 19980301 2 1.00\n7 19980101 3 0.00\n";
        let users = Users::of(Input::parse(file.as_bytes()));
        let user = users.get(7).unwrap();
        let (first, last) = ("1997-01-05".to_owned(), "1998-03-01".to_owned());
        let info = Info { user_id: 7, first_order: first, last_order: last, orders: 4 };
        assert_eq!(user.info(), info);
        let profile =
            Profile { user_id: 7, orders: 4, cds: 10, spent_cents: 1_600, returning: true };
        assert_eq!(user.profile(), profile);
        let likes = Preferences { user_id: 7, usual_cds: 2, usual_month: 1 };
        assert_eq!(user.preferences(), likes);
        assert_eq!(user.orders().orders[1].date, "1997-03-02");
    }
}
