//! From a history that breaks a guarantee to a small one that breaks the same: whatever can be left out is left out.
//!
//! Lists are cut by delta debugging (halves, quarters, … single entries); the broker's faults become a list as well,
//! those that struck. Bounded by [`RUNS_MAX`].

use crate::{
    oracles::{Broken, judge},
    plan::{Fate, Plan, Step},
    world::{self, Evidence},
};

/// Histories that one shrinking may run.
const RUNS_MAX: u32 = 500;

/// What came of it.
pub struct Shrunk {
    pub plan: Plan,
    pub broken: Broken,
    pub evidence: Evidence,
    pub runs: u32,
}

struct Shrinking {
    best: Shrunk,
}

/// Shrinks `plan`, which breaks a guarantee as `evidence` shows.
pub fn shrink(plan: &Plan, broken: Broken, evidence: Evidence) -> Shrunk {
    let mut shrinking = Shrinking {
        best: Shrunk {
            plan: plan.clone(),
            broken,
            evidence,
            runs: 0,
        },
    };
    // Once more while it helps: with fewer executions, fewer faults may do.
    loop {
        let before = shrinking.best.plan.clone();
        shrinking.round();
        if shrinking.best.plan == before || shrinking.is_tired() {
            return shrinking.best;
        }
    }
}

impl Shrinking {
    fn is_tired(&self) -> bool {
        self.best.runs >= RUNS_MAX
    }

    /// Takes `plan` where it breaks the same guarantee.
    fn attempt(&mut self, plan: Plan) -> bool {
        if self.is_tired() || plan == self.best.plan {
            return false;
        }
        self.best.runs += 1;
        let evidence = world::run(&plan);
        match judge(&evidence) {
            Err(broken) if broken.guarantee == self.best.broken.guarantee => {
                self.best = Shrunk {
                    plan,
                    broken,
                    evidence,
                    runs: self.best.runs,
                };
                true
            }
            _ => false,
        }
    }

    fn round(&mut self) {
        self.list(|plan| &mut plan.executions);
        self.list(|plan| &mut plan.disturbances);
        // From odds to a list of those that struck.
        let listed = self
            .best
            .evidence
            .struck
            .iter()
            .map(|struck| struck.strike)
            .collect();
        self.attempt(Plan {
            strikes: Some(listed),
            ..self.best.plan.clone()
        });
        if let Some(strikes) = &self.best.plan.strikes {
            let all: Vec<_> = strikes.iter().copied().collect();
            cut(all, |kept| {
                let plan = Plan {
                    strikes: Some(kept.iter().copied().collect()),
                    ..self.best.plan.clone()
                };
                self.attempt(plan)
            });
        }
        for index in 0..self.best.plan.executions.len() {
            self.list(|plan| &mut plan.executions[index].steps);
            self.change(|plan| plan.executions[index].by_two = false);
            self.change(|plan| plan.executions[index].cancelled_after_ms = None);
            self.change(|plan| plan.executions[index].at_ms = 0);
            for step in 0..self.best.plan.executions[index].steps.len() {
                self.change(|plan| plan.executions[index].steps[step] = Step::OK);
                self.change(|plan| plan.executions[index].steps[step].fate = Fate::Succeeds { after_ms: 0 });
            }
        }
        self.change(|plan| plan.faults.latency_max = std::time::Duration::ZERO);
        self.change(|plan| plan.faults.delivery_delay_max = std::time::Duration::ZERO);
        for index in (0..self.best.plan.processes.len()).rev() {
            self.change(|plan| {
                plan.processes.remove(index);
                plan.disturbances
                    .retain(|disturbance| disturbance.process != index);
                for disturbance in plan
                    .disturbances
                    .iter_mut()
                    .filter(|disturbance| disturbance.process > index)
                {
                    disturbance.process -= 1;
                }
            });
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Plan)) {
        let mut plan = self.best.plan.clone();
        change(&mut plan);
        let has_work = plan
            .executions
            .iter()
            .all(|execution| !execution.steps.is_empty());
        let has_all_kinds = self
            .best
            .plan
            .processes
            .iter()
            .all(|kind| plan.processes.contains(kind));
        if has_work && has_all_kinds {
            self.attempt(plan);
        }
    }

    fn list<T: Clone>(&mut self, of: impl Fn(&mut Plan) -> &mut Vec<T>) {
        let all = of(&mut self.best.plan.clone()).clone();
        cut(all, |kept| {
            let mut plan = self.best.plan.clone();
            *of(&mut plan) = kept.to_vec();
            let is_legal = plan
                .executions
                .iter()
                .all(|execution| !execution.steps.is_empty());
            is_legal && self.attempt(plan)
        });
    }
}

/// Delta debugging: the shortest list, by leaving out parts, for which `still_fails`. One more bound than the
/// caller's: parts are halved, so the rounds are as many as the list is long, twice.
pub fn cut<T: Clone>(mut list: Vec<T>, mut still_fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut part = list.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        while from < list.len() {
            let to = (from + part).min(list.len());
            let kept: Vec<T> = list[..from].iter().chain(&list[to..]).cloned().collect();
            if still_fails(&kept) {
                list = kept;
            } else {
                from = to;
            }
        }
        if part == 1 || list.is_empty() {
            return list;
        }
        part = part.div_ceil(2);
    }
}
