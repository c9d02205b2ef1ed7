//! A bounded number of open connections. A silent one may be closed to make room for a new one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    task::{AbortHandle, Id},
    time::Instant,
};

use super::activity::{Activity, Silence};

/// A connection that has had an answer may be closed after it was silent for this long. Before that, its client may be
/// about to send the next request.
const PAUSE_BETWEEN_REQUESTS: Duration = Duration::from_secs(1);

/// Open connections. Only the task that accepts connections uses it.
#[derive(Debug)]
pub(super) struct Pool {
    most: usize,
    open: HashMap<Id, Open>,
}

#[derive(Debug)]
struct Open {
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Pool {
    pub(super) fn new(most: usize) -> Pool {
        Pool {
            most,
            open: HashMap::new(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.len() < self.most
    }

    pub(super) fn add(&mut self, activity: Arc<Activity>, task: AbortHandle) {
        self.open.insert(task.id(), Open { activity, task });
    }

    pub(super) fn remove(&mut self, id: Id) {
        self.open.remove(&id);
    }

    /// Closes a silent connection, and returns whether there was one: of those that have never sent the head of a
    /// request, the longest silent one; if there are none, the longest silent one of the others. So a client that sends
    /// its request at once gets an answer, however many others are silent. Looks at each connection.
    pub(super) fn evict(&mut self, now: Instant) -> bool {
        let silent = self.open.iter().filter_map(|(id, open)| {
            let Silence { has_asked, since } = open.activity.silence()?;
            let may_go = !has_asked || now.duration_since(since) >= PAUSE_BETWEEN_REQUESTS;
            may_go.then_some((has_asked, since, *id))
        });
        let longest = silent.min_by_key(|(has_asked, since, _)| (*has_asked, *since));
        let victim = longest.and_then(|(_, _, id)| self.open.remove(&id));
        if let Some(victim) = &victim {
            victim.task.abort();
        }
        victim.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn the_longest_silent_goes_first_and_nobody_who_gets_an_answer() {
        let (mut pool, mut tasks) = (Pool::new(5), JoinSet::new());
        let mut add = |pool: &mut Pool| {
            // Connections begin at different times.
            let last = Instant::now();
            while Instant::now() == last {}
            let activity = Arc::new(Activity::new());
            let task = tasks.spawn(pending::<()>());
            pool.add(Arc::clone(&activity), task.clone());
            (activity, task)
        };
        let minute = Duration::from_secs(60);
        let (answered, idle) = add(&mut pool);
        let (asking, busy) = add(&mut pool);
        let (_, older) = add(&mut pool);
        let (_, newer) = add(&mut pool);
        drop(answered.begin(Some(minute)));
        answered.flushed();
        let _under_way = asking.begin(Some(minute));
        let (unsent, taking) = add(&mut pool);
        // The client has not taken all of its answer.
        drop(unsent.begin(Some(minute)));
        assert!(!pool.has_room());
        let mut ended = Vec::new();
        for _ in 0..3 {
            pool.evict(Instant::now());
            tokio::task::yield_now().await;
            let all = [&idle, &busy, &older, &newer, &taking];
            ended.push(all.map(|task| task.is_finished()));
        }
        let [first, second, third] = ended[..] else {
            panic!("{ended:?}");
        };
        assert_eq!(first, [false, false, true, false, false]);
        assert_eq!(second, [false, false, true, true, false]);
        // The client that has just had an answer may ask again.
        assert_eq!(third, second);
        let later = Instant::now() + PAUSE_BETWEEN_REQUESTS;
        assert!(pool.evict(later) && !pool.evict(later) && pool.has_room());
        tokio::task::yield_now().await;
        assert!(idle.is_finished() && !busy.is_finished() && !taking.is_finished());
    }
}
