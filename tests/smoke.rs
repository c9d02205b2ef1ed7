mod common;
#[test]
fn cluster_works() {
    let db = common::Database::empty();
    assert_eq!(db.psql("select 1"), "1");
}
