//! Contestants that are measured in interleaved rounds, and their ratios.
//!
//! Ratios can be quoted, single figures can't: every round runs all contestants one after the other,
//! so what slows the machine slows them alike.

use std::fmt;

/// What is measured of each contestant in each round.
#[derive(Debug, Clone)]
pub struct Figure {
    name: &'static str,
    digits: usize,
}

impl Figure {
    /// A figure that is printed with `digits` behind the point.
    #[must_use]
    pub const fn new(name: &'static str, digits: usize) -> Self {
        Self { name, digits }
    }
}

/// What a ratio has to reach.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    contestant: &'static str,
    figure: &'static str,
    must: Bound,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// The first contestant's `figure` is at least `ratio` times that of `contestant`.
    #[must_use]
    pub const fn at_least(contestant: &'static str, figure: &'static str, ratio: f64) -> Self {
        Self { contestant, figure, must: Bound::AtLeast(ratio) }
    }

    /// The first contestant's `figure` is at most `ratio` times that of `contestant`.
    #[must_use]
    pub const fn at_most(contestant: &'static str, figure: &'static str, ratio: f64) -> Self {
        Self { contestant, figure, must: Bound::AtMost(ratio) }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(ratio) => write!(f, "at least {ratio:.2}"),
            Self::AtMost(ratio) => write!(f, "at most {ratio:.2}"),
        }
    }
}

/// A workload with its contestants and what they did in each round.
#[derive(Debug)]
pub struct Contest {
    title: String,
    figures: Vec<Figure>,
    contestants: Vec<(&'static str, Vec<Vec<f64>>)>,
    goals: Vec<Goal>,
}

impl Contest {
    /// A contest of the first contestant with the others.
    pub fn new<const N: usize>(
        title: impl Into<String>,
        figures: Vec<Figure>,
        contestants: [&'static str; N],
    ) -> Self {
        let contestants = contestants.into_iter().map(|name| (name, Vec::new())).collect();
        Self { title: title.into(), figures, contestants, goals: Vec::new() }
    }

    /// Adds what has to be reached, which is printed beside the ratio.
    #[must_use]
    pub fn with_goals(mut self, goals: impl IntoIterator<Item = Goal>) -> Self {
        self.goals.extend(goals);
        self
    }

    /// Notes what a contestant did in a round: one number for each figure.
    ///
    /// # Panics
    ///
    /// When there is no such contestant, or another number of figures.
    pub fn note(&mut self, contestant: usize, figures: Vec<f64>) {
        assert_eq!(figures.len(), self.figures.len(), "{}", self.title);
        self.contestants[contestant].1.push(figures);
    }

    fn column(&self, contestant: usize, figure: usize) -> Vec<f64> {
        self.contestants[contestant].1.iter().map(|round| round[figure]).collect()
    }

    /// The first contestant's figure over that of another, round by round.
    fn ratios(&self, twin: usize, figure: usize) -> Vec<f64> {
        let (ours, theirs) = (self.column(0, figure), self.column(twin, figure));
        // Two that are too small to be measured are alike.
        let ratio = |(ours, theirs)| if ours == theirs { 1.0 } else { ours / theirs };
        ours.into_iter().zip(theirs).map(ratio).collect()
    }

    fn goal(&self, twin: usize, figure: usize) -> Option<Bound> {
        let (twin, figure) = (self.contestants[twin].0, self.figures[figure].name);
        let of_it = |goal: &&Goal| goal.contestant == twin && goal.figure == figure;
        self.goals.iter().find(of_it).map(|goal| goal.must)
    }
}

/// Minimum, median and maximum. Without figures, nothing is known.
fn spread(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    match figures[..] {
        [] => [f64::NAN; 3],
        [first, ..] => [first, figures[figures.len() / 2], figures[figures.len() - 1]],
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for (index, Figure { name, digits }) in self.figures.iter().enumerate() {
            writeln!(f, "  {name:<32} {:>9} {:>9} {:>9}", "minimum", "median", "maximum")?;
            for (contestant, (named, _)) in self.contestants.iter().enumerate() {
                let [least, median, most] = spread(self.column(contestant, index));
                writeln!(
                    f,
                    "    {named:<30} {least:>9.digits$} {median:>9.digits$} {most:>9.digits$}"
                )?;
            }
            for (twin, (named, _)) in self.contestants.iter().enumerate().skip(1) {
                let ratios = self.ratios(twin, index);
                let [least, median, most] = spread(ratios.clone());
                write!(
                    f,
                    "    ratio to {named:<21} {least:>9.2} {median:>9.2} {most:>9.2}  rounds"
                )?;
                for ratio in ratios {
                    write!(f, " {ratio:.2}")?;
                }
                match self.goal(twin, index) {
                    Some(bound) => writeln!(f, "; must: {bound}")?,
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round_and_printed_beside_their_goal() {
        let goals = [Goal::at_least("theirs", "per second", 0.92)];
        let figures = vec![Figure::new("per second", 0)];
        let mut contest = Contest::new("race", figures, ["ours", "theirs"]).with_goals(goals);
        for (ours, theirs) in [(10.0, 20.0), (30.0, 10.0), (10.0, 10.0)] {
            contest.note(0, vec![ours]);
            contest.note(1, vec![theirs]);
        }
        assert_eq!(contest.ratios(1, 0), [0.5, 3.0, 1.0]);
        assert_eq!(spread(contest.ratios(1, 0)), [0.5, 1.0, 3.0]);
        let printed = contest.to_string();
        assert!(printed.contains("rounds 0.50 3.00 1.00; must: at least 0.92"), "{printed}");
    }
}
