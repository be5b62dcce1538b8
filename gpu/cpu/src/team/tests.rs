use super::*;

/// Each unit of phase `p` adds to a cell of the phase and checks that the phase before is complete.
struct Ledger {
    units: u32,
    cells: Vec<AtomicU32>,
    panic_at: Option<(u32, u32)>,
}

impl Ledger {
    fn new(phases: u32, units: u32) -> Self {
        Self { units, cells: (0..phases).map(|_| AtomicU32::new(0)).collect(), panic_at: None }
    }
}

impl Work for Ledger {
    fn open(&self, phase: u32) -> u32 {
        // Every fifth phase is empty.
        if phase % 5 == 4 { 0 } else { self.units }
    }

    fn run(&self, phase: u32, unit: u32, worker: usize) {
        assert!(worker < 8 && unit < self.units);
        assert_ne!(self.panic_at, Some((phase, unit)), "asked for");
        if let Some(before) = (0..phase).rev().find(|p| p % 5 != 4) {
            assert_eq!(self.cells[before as usize].load(Ordering::Relaxed) % self.units, 0);
        }
        if unit.is_multiple_of(3) {
            std::thread::yield_now();
        }
        self.cells[phase as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn every_unit_runs_once_and_phases_in_order() {
    for size in [1, 2, 5] {
        let mut team = Team::new(size, Ledger::new(24, 7)).unwrap();
        for step in 1..=200 {
            team.start(24);
            if step % 50 == 0 {
                // Long enough for all to fall asleep.
                std::thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(team.finish(), Ok(()));
            for (phase, cell) in team.work().cells.iter().enumerate() {
                let expected = if phase % 5 == 4 { 0 } else { step * 7 };
                assert_eq!(cell.load(Ordering::Relaxed), expected, "phase {phase} of step {step}");
            }
        }
    }
}

#[test]
fn a_panic_in_a_unit_ends_the_step() {
    let mut ledger = Ledger::new(8, 4);
    ledger.panic_at = Some((3, 2));
    let mut team = Team::new(3, ledger).unwrap();
    team.start(8);
    assert_eq!(team.finish(), Err(Poisoned));
}

#[test]
fn a_step_without_phases_is_finished_at_once() {
    let mut team = Team::new(2, Ledger::new(1, 1)).unwrap();
    team.start(0);
    assert_eq!(team.finish(), Ok(()));
}
