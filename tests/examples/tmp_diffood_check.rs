fn main() {
    let path = std::env::args().nth(1).unwrap();
    let pack = oodbench_engine::pack::Pack::open(path.as_ref()).unwrap();
    for r in oodbench_engine::check::check(&pack, "diffood") {
        println!("{} {} {}", if r.passed { "ok    " } else { "FAILED" }, r.check, r.message);
    }
}
