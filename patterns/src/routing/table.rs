use std::collections::HashSet;

use postrider_core::{Address, Error, ErrorKind, Result, check_declared_name, check_name};
use serde::{Deserialize, Serialize};

use super::{condition::Condition, field::Field, inbound::Inbound, partition::Partitioner};
use crate::{
    handler::{HandlerError, codes},
    naming::Naming,
};

const MAX_RULES: usize = 1_000;
const MAX_ROUTES: usize = 100;

/// Where copies of a message go. It is data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Route {
    /// To a queue.
    Queue(String),
    /// To an exchange.
    Exchange {
        /// Its name.
        name: String,
        /// The routing key; `None` for the one that the message came with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// To one of several queues, by a key. A message without that key is dead-lettered.
    Partition {
        /// The queues.
        to: Partitioner,
        /// What the key is.
        by: Field,
    },
}

impl Route {
    /// To a queue.
    pub fn queue(name: impl Into<String>) -> Self {
        Self::Queue(name.into())
    }

    /// To an exchange, under a routing key.
    pub fn exchange(name: impl Into<String>, key: impl Into<String>) -> Self {
        Self::Exchange { name: name.into(), key: Some(key.into()) }
    }

    /// To an exchange, under the key that the message came with.
    pub fn exchange_as_it_came(name: impl Into<String>) -> Self {
        Self::Exchange { name: name.into(), key: None }
    }

    /// To one of several queues.
    #[must_use]
    pub const fn partition(to: Partitioner, by: Field) -> Self {
        Self::Partition { to, by }
    }

    /// Where this very message goes.
    ///
    /// # Errors
    ///
    /// When it has not the key of a partition.
    pub(super) fn address(
        &self,
        inbound: &Inbound,
        naming: &Naming,
    ) -> std::result::Result<Address, HandlerError> {
        Ok(match self {
            Self::Queue(name) => Address::queue(name.clone()),
            Self::Exchange { name, key: Some(key) } => Address::exchange(name.clone(), key.clone()),
            Self::Exchange { name, key: None } => {
                Address::exchange(name.clone(), inbound.address().routing_key().to_owned())
            }
            Self::Partition { to, by } => {
                let key = by.key(inbound)?.ok_or_else(|| {
                    HandlerError::invalid(format!("it has no {by} that could be its key"))
                        .with_code(codes::NO_KEY)
                })?;
                to.address(naming, &key)
            }
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Queue(name) if name.is_empty() => check_declared_name("route", name),
            Self::Queue(name) => check_name("route", name),
            Self::Exchange { name, key } => {
                check_name("route", name)?;
                check_name("route", key.as_deref().unwrap_or_default())
            }
            Self::Partition { .. } => Ok(()),
        }
    }
}

/// The messages for which a condition holds go to these routes.
///
/// # Example: a rule
///
/// ```
/// use postrider_patterns::routing::{Condition, Field, Route, Rule};
///
/// let rule = Rule::new("large", Condition::at_least(Field::body("total"), 100), [
///     Route::queue("large_orders"),
///     Route::exchange("audit", "order.large"),
/// ]);
/// assert_eq!(rule.to.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What it is called, once in a table.
    pub name: String,
    /// For which messages it is.
    pub when: Condition,
    /// Where they go: each route gets a copy.
    pub to: Vec<Route>,
}

impl Rule {
    /// A rule from its parts.
    pub fn new(
        name: impl Into<String>,
        when: Condition,
        to: impl IntoIterator<Item = Route>,
    ) -> Self {
        Self { name: name.into(), when, to: to.into_iter().collect() }
    }
}

/// How many rules a message follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Matching {
    /// The first that holds.
    #[default]
    First,
    /// Every one that holds: a recipient list. A destination gets one copy, however many name it.
    All,
}

/// What becomes of a message that no rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Otherwise {
    /// It is dead-lettered, with the code [`NO_ROUTE`](crate::codes::NO_ROUTE).
    #[default]
    DeadLetter,
    /// It is dropped and counted: a message filter.
    Drop,
    /// It goes to these routes.
    Send(Vec<Route>),
}

/// Ordered rules, and what becomes of the rest. It is data, and a router's can be
/// [changed while it runs](super::Router::controlled).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RoutingTable {
    /// How often it was changed.
    pub version: u64,
    /// How many rules a message follows.
    pub matching: Matching,
    /// The rules in their order.
    pub rules: Vec<Rule>,
    /// What becomes of messages that no rule is for.
    pub otherwise: Otherwise,
}

/// A step from one table to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Change {
    /// Adds a rule.
    Add {
        /// The rule.
        rule: Rule,
        /// The name of the rule that comes after it; `None` for the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<String>,
    },
    /// Puts a rule in the place of the one of its name.
    Replace(Rule),
    /// Removes the rule of this name.
    Remove(String),
    /// Sets what becomes of messages that no rule is for.
    Otherwise(Otherwise),
}

impl RoutingTable {
    /// Whether it is one that a router takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for more than 1,000 rules, a rule without a name, routes or with more
    /// than 100 of them, a name twice, a route to what no broker has, and a condition that is too
    /// large or cannot hold.
    pub fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, "route", why));
        if self.rules.len() > MAX_RULES {
            return refuse(format!("a table has at most {MAX_RULES} rules"));
        }
        let mut names = HashSet::new();
        for rule in &self.rules {
            if rule.name.is_empty() || !names.insert(rule.name.as_str()) {
                return refuse(format!("each rule has a name of its own, not '{}'", rule.name));
            }
            rule.when.check().map_err(|error| error.with_context("rule", rule.name.clone()))?;
            check_routes(&rule.to)
                .map_err(|error| error.with_context("rule", rule.name.clone()))?;
        }
        match &self.otherwise {
            Otherwise::Send(routes) => check_routes(routes),
            Otherwise::DeadLetter | Otherwise::Drop => Ok(()),
        }
    }

    /// The table after all of these changes.
    ///
    /// # Errors
    ///
    /// When one of them cannot be made, or the table would be none that a router takes.
    pub fn changed(&self, changes: Vec<Change>) -> Result<Self> {
        let mut table = self.clone();
        for change in changes {
            table.change(change)?;
        }
        table.version = self.version.saturating_add(1);
        table.check()?;
        Ok(table)
    }

    fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Add { rule, before: None } => self.rules.push(rule),
            Change::Add { rule, before: Some(before) } => {
                let place = self.place(&before)?;
                self.rules.insert(place, rule);
            }
            Change::Replace(rule) => {
                let place = self.place(&rule.name)?;
                self.rules[place] = rule;
            }
            Change::Remove(name) => {
                let place = self.place(&name)?;
                self.rules.remove(place);
            }
            Change::Otherwise(otherwise) => self.otherwise = otherwise,
        }
        // Before the next one, so that many changes cannot make it larger than it may ever be.
        if self.rules.len() > MAX_RULES {
            let why = format!("a table has at most {MAX_RULES} rules");
            return Err(Error::new(ErrorKind::Invalid, "route", why));
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Result<usize> {
        self.rules.iter().position(|rule| rule.name == name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "route", "the table has no such rule")
                .with_context("rule", name.to_owned())
        })
    }

    /// Where a message goes; nowhere when it is dropped.
    pub(super) fn choose(
        &self,
        inbound: &Inbound,
        naming: &Naming,
    ) -> std::result::Result<Vec<Address>, HandlerError> {
        let mut chosen = Vec::new();
        let mut found = false;
        for rule in &self.rules {
            if rule.when.holds(inbound)? {
                found = true;
                add(&mut chosen, &rule.to, inbound, naming)?;
                if self.matching == Matching::First {
                    break;
                }
            }
        }
        if !found {
            self.otherwise.choose(&mut chosen, inbound, naming)?;
        }
        Ok(chosen)
    }
}

impl Otherwise {
    pub(super) fn choose(
        &self,
        chosen: &mut Vec<Address>,
        inbound: &Inbound,
        naming: &Naming,
    ) -> std::result::Result<(), HandlerError> {
        match self {
            Self::Drop => Ok(()),
            Self::Send(routes) => add(chosen, routes, inbound, naming),
            Self::DeadLetter => Err(HandlerError::unsupported("no rule of the router is for it")
                .with_code(codes::NO_ROUTE)),
        }
    }
}

fn add(
    chosen: &mut Vec<Address>,
    routes: &[Route],
    inbound: &Inbound,
    naming: &Naming,
) -> std::result::Result<(), HandlerError> {
    for route in routes {
        let address = route.address(inbound, naming)?;
        if !chosen.contains(&address) {
            chosen.push(address);
        }
    }
    Ok(())
}

fn check_routes(routes: &[Route]) -> Result<()> {
    if routes.is_empty() || routes.len() > MAX_ROUTES {
        let why = format!("messages go to 1 to {MAX_ROUTES} routes, not {}", routes.len());
        return Err(Error::new(ErrorKind::Invalid, "route", why));
    }
    routes.iter().try_for_each(Route::check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, to: &str) -> Rule {
        Rule::new(name, Condition::Always, [Route::queue(to.to_owned())])
    }

    fn names(table: &RoutingTable) -> Vec<&str> {
        table.rules.iter().map(|rule| rule.name.as_str()).collect()
    }

    #[test]
    fn changes_are_made_together_or_not_at_all() {
        let table =
            RoutingTable { rules: vec![rule("a", "1"), rule("c", "3")], ..Default::default() };
        let add = Change::Add { rule: rule("b", "2"), before: Some("c".to_owned()) };
        let next = table.changed(vec![add.clone(), Change::Replace(rule("a", "9"))]).unwrap();
        assert_eq!((names(&next), next.version), (vec!["a", "b", "c"], 1));
        assert_eq!(next.rules[0].to, [Route::queue("9")]);
        let next = next.changed(vec![Change::Remove("c".to_owned())]).unwrap();
        assert_eq!((names(&next), next.version), (vec!["a", "b"], 2));
        for wrong in [
            Change::Remove("x".to_owned()),
            Change::Replace(rule("x", "1")),
            Change::Add { rule: rule("x", "1"), before: Some("y".to_owned()) },
            Change::Add { rule: rule("a", "1"), before: None },
            Change::Add { rule: rule("", "1"), before: None },
            Change::Add { rule: rule("x", ""), before: None },
            Change::Add { rule: rule("x", &"q".repeat(256)), before: None },
            Change::Add { rule: Rule::new("x", Condition::Always, []), before: None },
            Change::Otherwise(Otherwise::Send(Vec::new())),
        ] {
            assert!(table.changed(vec![add.clone(), wrong.clone()]).is_err(), "{wrong:?}");
        }
        assert_eq!(names(&table), ["a", "c"]);
    }

    #[test]
    fn a_table_does_not_grow_without_bound() {
        let rules = (0..MAX_RULES).map(|number| rule(&number.to_string(), "q")).collect();
        let full = RoutingTable { rules, ..Default::default() };
        full.check().unwrap();
        assert!(full.changed(vec![Change::Add { rule: rule("x", "q"), before: None }]).is_err());
        let routes = vec![Route::queue("q"); MAX_ROUTES + 1];
        let wide = Rule::new("wide", Condition::Always, routes);
        assert!(RoutingTable { rules: vec![wide], ..Default::default() }.check().is_err());
    }
}
