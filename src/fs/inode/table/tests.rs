use super::*;

fn entry(name: &str, declared: &str, kind: Kind) -> Arc<Entry> {
    Arc::new(Entry {
        name: name.into(),
        file: name.into(),
        declared: declared.into(),
        kind,
    })
}

fn enter(inodes: &mut Inodes, parent: Ino, entry: &Arc<Entry>) -> Option<Ino> {
    let reserved = inodes.reserve(1);
    inodes.lookup(parent, entry, reserved, None)
}

fn child(name: &str) -> Arc<Entry> {
    entry(name, "child<x>", Kind::Child)
}

#[test]
fn one_number_per_path_until_forgotten() {
    let mut inodes = Inodes::default();
    let machine = enter(&mut inodes, ROOT, &child("machine")).unwrap();
    let usb = enter(&mut inodes, machine, &child("usb")).unwrap();
    assert_eq!(enter(&mut inodes, machine, &child("usb")), Some(usb));
    assert_eq!(inodes.object(usb).unwrap().as_str(), "/machine/usb");
    // The parent stays for its child's sake.
    inodes.forget(machine, 1);
    assert_eq!(inodes.object(usb).unwrap().as_str(), "/machine/usb");
    inodes.forget(usb, 1);
    assert!(inodes.get(usb).is_some());
    inodes.forget(usb, 1);
    assert_eq!(inodes.nodes.len(), 1);
    assert!(inodes.get(usb).is_none());
    inodes.forget(usb, 5);
    assert_ne!(enter(&mut inodes, ROOT, &child("machine")), Some(machine));
}

#[test]
fn what_is_gone_stays_gone() {
    let mut inodes = Inodes::default();
    let usb = enter(&mut inodes, ROOT, &child("usb")).unwrap();
    let port = enter(&mut inodes, usb, &entry("port", "str", Kind::Value)).unwrap();
    inodes.detach(usb);
    assert!(inodes.get(usb).is_none() && inodes.get(port).is_none());
    let again = enter(&mut inodes, ROOT, &child("usb")).unwrap();
    assert_ne!(again, usb);
    assert!(
        inodes.get(port).is_none(),
        "the old property is not the new object's"
    );
    inodes.forget(port, 1);
    inodes.forget(usb, 1);
    assert_eq!(inodes.object(again).unwrap().as_str(), "/usb");
    // Another type is another object.
    let other = enter(&mut inodes, ROOT, &entry("usb", "child<y>", Kind::Child)).unwrap();
    assert_ne!(other, again);
}

#[test]
fn sizes() {
    let mut inodes = Inodes::default();
    let p = enter(&mut inodes, ROOT, &entry("p", "str", Kind::Value)).unwrap();
    assert_eq!(inodes.tell_size(p), UNREAD_SIZE);
    assert!(!inodes.set_size(p, UNREAD_SIZE));
    assert!(inodes.set_size(p, 5));
    assert_eq!(inodes.tell_size(p), 5);
    // Only of a value that nobody has opened does a listing tell the size.
    let entry = entry("q", "str", Kind::Value);
    let reserved = inodes.reserve(1);
    let q = inodes.lookup(ROOT, &entry, reserved, Some(7)).unwrap();
    assert_eq!(inodes.tell_size(q), 7);
    inodes.lookup(ROOT, &entry, reserved, Some(8)).unwrap();
    assert_eq!(inodes.tell_size(q), 7);
    inodes.set_size(q, UNREAD_SIZE);
    inodes.lookup(ROOT, &entry, reserved, Some(8)).unwrap();
    assert_eq!(inodes.tell_size(q), UNREAD_SIZE);
    assert!(inodes.object(p).is_none());
}

#[test]
fn the_kernels_size_is_known_from_below() {
    let mut inodes = Inodes::default();
    let p = enter(&mut inodes, ROOT, &entry("p", "str", Kind::Value)).unwrap();
    inodes.tell_size(p);
    assert!(!inodes.kernel_must_grow(p, UNREAD_SIZE));
    assert!(inodes.kernel_must_grow(p, UNREAD_SIZE + 1));
    assert!(inodes.kernel_must_grow(p, UNREAD_SIZE + 1), "each time");
    inodes.kernel_lowered(p, 10);
    inodes.set_size(p, 9000);
    inodes.tell_size(p);
    assert!(!inodes.kernel_must_grow(p, 10));
    assert!(inodes.kernel_must_grow(p, 11), "what it is told may come late");
}

#[test]
fn unaddressable_objects_have_no_path() {
    let mut inodes = Inodes::default();
    let odd = enter(&mut inodes, ROOT, &child("a/b")).unwrap();
    assert!(inodes.object(odd).is_none());
    assert!(inodes.get(odd).is_some());
}

#[test]
fn an_endless_tree_has_an_end() {
    let mut inodes = Inodes::default();
    let long = "x".repeat(1 << 20);
    let entered: Vec<_> = (0..1000)
        .map_while(|i| enter(&mut inodes, ROOT, &child(&format!("{long}{i}"))))
        .collect();
    assert!((10..400).contains(&entered.len()), "{}", entered.len());
    for ino in entered {
        inodes.forget(ino, 1);
    }
    assert_eq!((inodes.weight, inodes.nodes.len()), (0, 1));
}
