//! Every kind of change of rows, one after the other.

use oddscache_testkit::{followed::Followed, server_has};

use crate::{By, changes, steps};

/// No log row names the changed markets, and their snapshots keep their ids. A read of everything must still show them
/// (A4 of `read/plan.rs`), and everything else, too.
#[tokio::test]
async fn a_read_of_everything_shows_markets_that_changed_unseen() {
    let followed = Followed::seeded().await;
    let before = followed.check("the seed").await;
    let unseen = "begin; update market_odds set line = 77 where snapshot_id = 122;
         update competitor_market_odds set outcomes = '[{\"name\": \"1\", \"odds\": 7.77}]' where snapshot_id = 12;
         delete from oddscache.change_log; commit";
    followed.run(unseen).await;
    let reloads = followed.reloads();
    followed.cache.resync();
    followed
        .counted("a reload", |now| now.reloads > reloads)
        .await;
    assert_ne!(before, followed.check("read again").await);
}

changes! { By::Keys;
    kickoff_moves: [
        "update events set kickoff = kickoff + interval '1 hour' where id = 1",
    ];
    kickoff_moves_out_of_the_window_and_back: [
        "update events set kickoff = now() at time zone 'UTC' - interval '3 hours' where id = 1",
        "update events set kickoff = now() at time zone 'UTC' + interval '3 hours' where id in (1, 4)",
    ];
    a_new_event_with_all_its_rows: [
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
         values (5, 'sr5', '', '', '', now() at time zone 'UTC' + interval '1 day');
         insert into odds_snapshots (id, event_id, bookmaker_id) values (900, 5, 1);
         insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (900, '1', 'one', '[{\"name\": \"1\", \"odds\": 1.5}]')",
    ];
    // No foreign key leads from snapshots to events, so rows may come in any order.
    snapshots_before_their_event: [
        "insert into odds_snapshots (id, event_id, bookmaker_id) values (900, 5, 1), (150, 1, 2)",
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
         values (5, 'sr5', '', '', '', now() at time zone 'UTC' + interval '1 day')",
    ];
    an_event_is_deleted: [
        "delete from events where id = 1",
    ];
    an_event_changes_its_id: [
        "update competitor_events set betpawa_event_id = null where betpawa_event_id = 1",
        "update events set id = 9 where id = 1",
        "update odds_snapshots set event_id = 9 where event_id = 1",
    ];
    a_relink_changes_both_events: [
        "update competitor_events set betpawa_event_id = 2 where id = 11",
        "update competitor_events set betpawa_event_id = 1 where id = 11",
    ];
    an_unlinked_competitor_event_is_linked_and_unlinked: [
        "update competitor_events set betpawa_event_id = 1 where id = 21",
        "update competitor_events set betpawa_event_id = null where id = 21",
        "update competitor_events set betpawa_event_id = null where id = 11",
    ];
    a_relink_swaps_two_events: [
        "update competitor_events set betpawa_event_id = 3 - betpawa_event_id where id in (1, 2)",
    ];
    a_competitor_event_is_deleted_softly_and_back: [
        "update competitor_events set deleted_at = now() where id = 11",
        "update competitor_events set deleted_at = null where id = 11",
    ];
    a_competitor_event_is_deleted: [
        "delete from competitor_events where id = 11",
    ];
    a_competitor_event_comes_after_its_snapshots: [
        "insert into competitor_odds_snapshots (id, competitor_event_id) values (990, 99), (991, 11);
         insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (990, '1', 'one', '[]')",
        "insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
         values (99, 'onexbet', 1, now(), 'x99', '')",
    ];
    a_source_is_renamed: [
        "update competitor_events set source = 'betking' where id = 11",
        "update competitor_events set source = 'betking' where source = 'sportybet'",
    ];
    of_two_live_links_of_one_source_the_greatest_snapshot_id_wins: [
        "update competitor_events set betpawa_event_id = 1 where id = 2",
        "insert into competitor_odds_snapshots (id, competitor_event_id) values (500, 1)",
        "insert into competitor_odds_snapshots (id, competitor_event_id) values (501, 2)",
        "delete from competitor_odds_snapshots where id = 501",
        "delete from competitor_odds_snapshots where id = 500",
        "delete from competitor_odds_snapshots where id = 22",
        "update competitor_events set deleted_at = now() where id = 2",
    ];
    the_newest_snapshot_is_deleted_and_the_one_before_comes_back: [
        "delete from odds_snapshots where id = 112",
        "delete from odds_snapshots where id = 111",
        "delete from odds_snapshots where event_id = 1",
    ];
    the_newest_competitor_snapshot_is_deleted_and_the_one_before_comes_back: [
        "delete from competitor_odds_snapshots where id = 112",
        "delete from competitor_odds_snapshots where id = 111",
    ];
    the_last_snapshot_of_an_event_is_deleted: [
        "delete from odds_snapshots where event_id = 1",
        "delete from competitor_odds_snapshots where competitor_event_id in (1, 11)",
    ];
    markets_come_in_a_later_transaction: [
        "insert into odds_snapshots (id, event_id, bookmaker_id) values (900, 1, 1)",
        "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (2, 900, '1', 'one', '[{\"name\": \"1\", \"odds\": 1.5}]')",
        "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (1, 900, '2', 'two', '[]')",
    ];
    competitor_markets_come_in_a_later_transaction: [
        "insert into competitor_odds_snapshots (id, competitor_event_id) values (900, 1)",
        "insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (900, '1', 'one', '[{\"name\": \"1\", \"odds\": 1.5}]')",
    ];
    a_market_becomes_unavailable_and_available_again: [
        "update market_odds set unavailable_at = now() at time zone 'UTC' where id = 1122",
        "update competitor_market_odds set unavailable_at = now() at time zone 'UTC' where id = 1122",
        "update market_odds set unavailable_at = null where id = 1122",
        "update competitor_market_odds set unavailable_at = null where id = 1122",
    ];
    outcomes_change_in_place: [
        "update market_odds set outcomes = jsonb_set(outcomes, '{0,odds}', '7.77') where id = 1122",
        "update market_odds set outcomes = '{}' where id = 1122",
        "update competitor_market_odds set outcomes = '[{\"name\": \"x\", \"odds\": null, \"more\": {\"a\": [1]}}]' where id = 1122",
    ];
    every_column_of_a_market_changes_in_place: [
        "update market_odds set betpawa_market_id = '9' where id = 1122",
        "update market_odds set betpawa_market_name = 'renamed' where id = 1122",
        "update market_odds set line = 3.5 where id = 1122",
        "update market_odds set handicap_type = 'h' where id = 1122",
        "update market_odds set handicap_home = -1.25 where id = 1122",
        "update market_odds set handicap_away = 1.25 where id = 1122",
        "update market_odds set market_groups = '[\"a\", \"b\"]' where id = 1122",
        "update market_odds set market_groups = null where id = 1122",
        "update market_odds set id = 1 where id = 1122",
    ];
    market_rows_are_deleted: [
        "delete from market_odds where id = 1122",
        "delete from market_odds where snapshot_id = 112",
        "delete from competitor_market_odds where id = 1122",
        "delete from competitor_market_odds where snapshot_id = 112",
    ];
    a_market_row_moves_to_another_snapshot: [
        "update market_odds set snapshot_id = 122 where id = 1122",
        "update market_odds set snapshot_id = 111 where id = 1121",
        "update market_odds set snapshot_id = 112 where id in (1111, 1112)",
        "update competitor_market_odds set snapshot_id = 12 where id = 1122",
    ];
    a_snapshot_moves_to_another_event: [
        "update odds_snapshots set event_id = 2 where id = 112",
        "update odds_snapshots set event_id = 1 where id = 222",
        "update competitor_odds_snapshots set competitor_event_id = 12 where id = 112",
    ];
    a_snapshot_moves_to_another_bookmaker: [
        "update odds_snapshots set bookmaker_id = 2 where id = 112",
        "update odds_snapshots set bookmaker_id = 3 where id = 112",
    ];
    a_snapshot_changes_its_id: [
        "update odds_snapshots set id = 950 where id = 111",
        "update odds_snapshots set id = 50 where id = 950",
    ];
    // The latest snapshot is the one with the greatest id, even if it was captured earlier.
    a_later_id_with_an_earlier_time_is_the_latest: [
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-01-01')",
        "update odds_snapshots set captured_at = '2020-01-02 03:04:05.678901' where id = 900",
    ];
    on_conflict_updates_and_inserts: [
        "insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
         values (97, 'sportybet', 2, now(), 'x1', ''), (98, 'bet9ja', 3, now(), 'new', '')
         on conflict (source, external_id) do update set betpawa_event_id = excluded.betpawa_event_id",
    ];
    copy: [
        "copy odds_snapshots (id, event_id, bookmaker_id) from program 'printf \"900,1,1\\n901,2,7\"' with (format csv)",
    ];
    a_cte_with_two_updates: [
        "with one as (update market_odds set line = 9 where snapshot_id = 112 returning id),
              two as (update market_odds set line = 8 where snapshot_id = 222 returning id),
              three as (update competitor_market_odds set line = 7 where snapshot_id = 112 returning id)
         update odds_snapshots set last_confirmed_at = '2031-01-01' where id = 122",
    ];
    foreign_keys_cascade: [
        // The foreign key sets betpawa_event_id of two competitor events to null.
        "delete from events where id = 1; insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
         values (1, 'sr1', '', '', '', now() at time zone 'UTC' + interval '1 day')",
        // The foreign key deletes its markets, too.
        "delete from competitor_odds_snapshots where id = 122; insert into competitor_odds_snapshots (id, competitor_event_id)
         values (122, 12)",
    ];
    // The triggers are ENABLE ALWAYS, so they fire for replication, too.
    writes_of_a_replica_session: [
        "set session_replication_role = replica;
         update market_odds set line = 9 where snapshot_id = 112; reset session_replication_role",
    ];
    // These are too many keys for queries that are sent at once, so the follower reads the rows with other statements.
    // One event in seven is outside the window. One competitor event in five is linked to no event.
    many_keys_at_once: [
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
         select n, 'sr' || n, '', '', '', now() at time zone 'UTC' + case n % 7 when 0 then -3 else 24 end * interval '1 hour'
         from generate_series(1000, 1599) n;
         insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
         select n + o, s, case n % 5 when 0 then null else n end, now(), s || n, ''
         from generate_series(1000, 1599) n, (values (0, 'sportybet'), (1000, 'bet9ja')) v (o, s);
         insert into odds_snapshots (id, event_id, bookmaker_id) select n * 10 + b, n, b
         from generate_series(1000, 1599) n, generate_series(1, 2) b;
         insert into competitor_odds_snapshots (id, competitor_event_id) select n, n from generate_series(1000, 2599) n;
         insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         select n + 10000, n * 10 + 1, '1', 'one', '[]' from generate_series(1000, 1599) n;
         insert into competitor_market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         select n + 10000, n, '1', 'one', '[]' from generate_series(1000, 2599) n",
        "update odds_snapshots set last_confirmed_at = '2031-02-03 04:05:06.789'",
        "update competitor_odds_snapshots set last_confirmed_at = case id % 3 when 0 then null else timestamp '2031-02-03' end",
        "update competitor_events set betpawa_event_id = 1000 + (betpawa_event_id - 993) % 600 where id >= 1000",
        "update events set kickoff = now() at time zone 'UTC' + (id % 7 - 3) * interval '1 hour' where id >= 1000",
        "update market_odds set line = 2.5; update competitor_market_odds set unavailable_at = '2031-01-01'",
        "delete from competitor_odds_snapshots where id % 2 = 0 and id >= 1000; update odds_snapshots set event_id = event_id + 1 where id % 10 = 2",
    ];
    several_tables_in_one_transaction: [
        "update events set kickoff = kickoff + interval '1 hour' where id = 1; delete from odds_snapshots where id = 112;
         update competitor_events set betpawa_event_id = 2 where id = 1; update competitor_events set betpawa_event_id = 1 where id = 2;
         insert into competitor_odds_snapshots (id, competitor_event_id) values (900, 1), (901, 2);
         insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (900, '1', 'one', '[]'), (901, '1', 'one', '[]');
         update market_odds set unavailable_at = now() at time zone 'UTC' where snapshot_id = 111",
    ];
}

changes! { By::Wide;
    events_are_truncated: ["truncate events cascade"];
    competitor_events_are_truncated: ["truncate competitor_events"];
    odds_snapshots_are_truncated: ["truncate odds_snapshots"];
    competitor_odds_snapshots_are_truncated_with_their_markets: ["truncate competitor_odds_snapshots cascade"];
    market_odds_are_truncated: ["truncate market_odds"];
    competitor_market_odds_are_truncated: ["truncate competitor_market_odds"];
    everything_is_truncated_and_written_anew: [
        "truncate events, competitor_events, odds_snapshots, competitor_odds_snapshots, market_odds, competitor_market_odds",
        "truncate bookmakers; truncate events cascade; insert into bookmakers (id, name, slug) values (1, 'betpawa', 'betpawa');
         insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
         values (1, 'sr1', '', '', '', now() at time zone 'UTC' + interval '1 day');
         insert into odds_snapshots (id, event_id, bookmaker_id) values (1, 1, 1)",
    ];
}

/// The documented limit is 20,000 keys.
#[tokio::test]
async fn the_most_keys_that_a_log_row_lists_need_no_reload() {
    let followed = Followed::seeded().await;
    followed
        .step("insert into odds_snapshots (id, event_id, bookmaker_id) select 100000 + n, n, 1 from generate_series(1, 20000) n")
        .await;
    assert_eq!(followed.reloads(), 1);
}

/// Most writes are confirmations, and most rows are markets. So a confirmation must not read markets.
#[tokio::test]
async fn a_confirmation_reads_no_markets() {
    let followed = Followed::seeded().await;
    let read = followed.cache.counters().snapshots_read;
    for table in ["odds_snapshots", "competitor_odds_snapshots"] {
        for change in [
            "last_confirmed_at = '2031-02-03 04:05:06.789'",
            "last_confirmed_at = null, captured_at = captured_at - interval '1 s'",
        ] {
            let sql = format!("update {table} set {change}");
            followed.changes(&sql).await;
        }
    }
    let counters = followed.cache.counters();
    assert_eq!(counters.snapshots_read, read, "markets were read");
    assert_eq!(counters.reloads, 1);
}

/// MERGE fires the triggers of all three operations. It exists since PostgreSQL 15.
#[tokio::test]
async fn merge_inserts_updates_and_deletes() {
    if !server_has("MERGE", 15) {
        return;
    }
    let merge = "merge into odds_snapshots s using (values (112, 1), (900, 2), (222, 0)) v (id, what) on s.id = v.id
         when matched and what = 0 then delete
         when matched then update set bookmaker_id = 5
         when not matched then insert (id, event_id, bookmaker_id) values (v.id, 3, 1)";
    steps(By::Keys, &[merge]).await;
}
