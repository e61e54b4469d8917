use std::{collections::HashSet, io};

use postrider_core::{Address, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{
    condition::Condition,
    inbound::Inbound,
    route::{Route, check_routes},
};
use crate::{
    handler::{HandlerError, codes},
    naming::Naming,
};

/// How many rules a table has at most, and how large a rule and a table may be, in the bytes of
/// their JSON: conditions in conditions, long texts and many routes count.
pub(super) const MAX_RULES: usize = 1_000;
const MAX_RULE_BYTES: usize = 64 * 1024;
pub(super) const MAX_TABLE_BYTES: usize = 1024 * 1024;

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

impl RoutingTable {
    /// Whether it is one that a router takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for more than 1,000 rules, a rule without a name, routes or with more
    /// than 100 of them, a name twice, a route to what no broker has, a condition that has too much
    /// in it or cannot hold, and for a rule of more than 64 KiB or a table of more than 1 MiB as
    /// JSON.
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
            let bytes = json_bytes(rule)?;
            if bytes > MAX_RULE_BYTES {
                // Its name may be what is so long.
                let name: String = rule.name.chars().take(100).collect();
                return refuse(format!(
                    "a rule has at most {MAX_RULE_BYTES} bytes, and '{name}' has {bytes}"
                ));
            }
        }
        if let Otherwise::Send(routes) = &self.otherwise {
            check_routes(routes)?;
        }
        let bytes = json_bytes(self)?;
        if bytes > MAX_TABLE_BYTES {
            return refuse(format!("a table has at most {MAX_TABLE_BYTES} bytes, not {bytes}"));
        }
        Ok(())
    }

    /// Whether nobody has said yet where messages go, or that they go nowhere.
    pub(super) fn is_blank(&self) -> bool {
        self.version == 0 && self.rules.is_empty() && self.otherwise == Otherwise::DeadLetter
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

/// How long a rule or a table is as JSON, which is not kept.
fn json_bytes<T: Serialize>(value: &T) -> Result<usize> {
    let mut bytes = Counted(0);
    match serde_json::to_writer(&mut bytes, value) {
        Ok(()) => Ok(bytes.0),
        Err(error) => Err(Error::new(ErrorKind::Invalid, "route", error.to_string())),
    }
}

struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Field, Partitioner, route::MAX_ROUTES};

    fn table(rules: Vec<Rule>) -> RoutingTable {
        RoutingTable { rules, ..Default::default() }
    }

    fn rule(name: &str, when: Condition) -> Rule {
        Rule::new(name, when, [Route::queue("q")])
    }

    #[test]
    fn a_table_has_so_many_rules_and_routes() {
        let rules = |number: usize| {
            let names = 0..number;
            table(names.map(|name| rule(&name.to_string(), Condition::Always)).collect())
        };
        rules(MAX_RULES).check().unwrap();
        assert!(rules(MAX_RULES + 1).check().is_err());
        let routes = vec![Route::queue("q"); MAX_ROUTES + 1];
        assert!(table(vec![Rule::new("wide", Condition::Always, routes)]).check().is_err());
    }

    #[test]
    fn a_rule_has_so_many_bytes_whatever_they_are_of() {
        let long = || "x".repeat(MAX_RULE_BYTES);
        let text = |length| Condition::equals(Field::Type, "x".repeat(length));
        table(vec![rule("fits", text(MAX_RULE_BYTES - 100))]).check().unwrap();
        let lanes = Partitioner::new("lanes", 2).unwrap();
        let far = Route::partition(lanes, Field::header("x".repeat(MAX_RULE_BYTES / 50)));
        for heavy in [
            rule("long text", text(MAX_RULE_BYTES)),
            rule("long name of a header", Condition::Exists(Field::header(long()))),
            rule("long path", Condition::Exists(Field::Body(vec!["x".to_owned(); 40_000]))),
            rule("many texts", Condition::Any(vec![text(100); 900])),
            rule("many values", Condition::OneOf(Field::Type, vec!["x".repeat(99).into(); 900])),
            rule("nested", (0..9).fold(text(60_000), |inner, _| inner.or(text(1_000)).negated())),
            Rule::new("many routes", Condition::Always, vec![far; MAX_ROUTES]),
            rule(&long(), Condition::Always),
        ] {
            let name = heavy.name.chars().take(30).collect::<String>();
            let error = table(vec![heavy]).check().unwrap_err();
            assert!(error.to_string().contains("65536 bytes"), "{name}: {error}");
        }
    }

    #[test]
    fn a_table_has_so_many_bytes_the_rest_included() {
        let text = || Condition::equals(Field::Type, "x".repeat(61_000));
        let rules = |number: usize| {
            let names = 0..number;
            table(names.map(|name| rule(&name.to_string(), text())).collect())
        };
        rules(17).check().unwrap();
        assert!(rules(18).check().unwrap_err().to_string().contains("1048576 bytes"));
        let far = Route::exchange("e", "k".repeat(200));
        let otherwise = Otherwise::Send(vec![far; MAX_ROUTES]);
        assert!(RoutingTable { otherwise, ..rules(17) }.check().is_err());
    }

    #[test]
    fn a_field_that_has_no_text_is_refused() {
        let empty = || Field::Body(vec!["a".to_owned(), String::new()]);
        let lanes = Partitioner::new("lanes", 2).unwrap();
        for wrong in [
            rule("a", Condition::Exists(empty())),
            rule("b", Condition::below(Field::header(""), 1).negated()),
            Rule::new("c", Condition::Always, [Route::partition(lanes, Field::body("a..b"))]),
        ] {
            assert!(table(vec![wrong.clone()]).check().is_err(), "{wrong:?}");
        }
    }
}
