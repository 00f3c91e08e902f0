//! Tests of push rules.

use ruma::user_id;

use super::*;

#[test]
fn rules_survive_being_stored() {
    let alice = user_id!("@alice:hearth.test");
    let mut rules = rules_of(alice, None);
    let put = |rule_id: &str| PushRuleChange::Put {
        rule: NewPushRule::Override(ruma::push::NewConditionalPushRule::new(
            rule_id.to_owned(),
            vec![],
            vec![],
        )),
        after: None,
        before: None,
    };
    apply(&mut rules, put("one")).expect("a change");
    let master = ".m.rule.master".to_owned();
    let change = PushRuleChange::Enable {
        kind: RuleKind::Override,
        rule_id: master,
        enabled: true,
    };
    apply(&mut rules, change).expect("a change");
    let content = content_of(&rules).expect("content");
    let again = rules_of(alice, Some(&content));
    assert_eq!(content_of(&again).expect("content").get(), content.get());
}

#[test]
fn threads_are_not_silenced_by_rules_about_subscriptions() {
    let rules = rules_of(user_id!("@alice:hearth.test"), None);
    assert!(rules.postcontent.is_empty());
}
