#!/usr/bin/env bash
# The paper's section 6.3 in one command: the nature model and one model trained against each attack, all tested under all
# three attacks with and without randomisation; then the evidence that the paper lacks; then the report.
#
#   ./multirun.sh                                             # synthetic speech
#   ./multirun.sh experiment=emodb dataset.root=…/emodb       # EMO-DB on a laptop
#   ./multirun.sh experiment=emodb dataset.root=…/emodb seed=0,1,2
#   ./multirun.sh experiment=chang2022 dataset.root=…/DEMoS   # the paper's
#
# With experiment=ren2020 the table of Ren et al. 2020 instead: three networks, trained alone or in two adversarial ways at
# five ε; 33 trainings, for which two cores want narrower networks (model.width=8) and fewer rounds.
#
#   ./multirun.sh experiment=ren2020 dataset.root=…/DEMoS     # EVIDENCE means nothing here
#
# What is done is not done again: give the same command once more after an interruption. EVIDENCE says how the finished
# runs are evaluated again ("evaluation=full" adds AutoAttack and others, "" skips it), OUTPUT where all of it goes.
set -euo pipefail

output=${OUTPUT:-outputs/table3}
evidence=${EVIDENCE-evaluation=matrix}
for word in "$@"; do
    [[ $word == experiment=*ren2020* ]] || continue
    output=${OUTPUT:-outputs/ren2020}
    networks=model=cnn4,resnet50,vgg16
    fedser --multirun hydra.sweep.dir="$output" $networks defence=none "$@"
    fedser --multirun hydra.sweep.dir="$output" $networks defence=adversarial \
        defence/training=adversarial_ren,similarity attack.eps=0.02,0.04,0.06,0.08,0.1 "$@"
    fedser-report "$output" --output "$output/report"
    exit
done

attacks='evaluation.attacks=[fgsm,pgd,deepfool]'
fedser --multirun hydra.sweep.dir="$output" "$attacks" attack=none defence=randomise "$@"
fedser --multirun hydra.sweep.dir="$output" "$attacks" attack=fgsm,pgd,deepfool defence=two_stage "$@"

code=0  # of the evaluation: a run that can't be evaluated does not cost the report
if [ -n "$evidence" ]; then
    also=()
    for word in "$@"; do
        case $word in
            simulation* | evaluation.eps=* | evaluation.precision=* | evaluation.batch_size=*) also+=("$word") ;;
        esac
    done
    # shellcheck disable=SC2086  # several overrides may stand in it
    fedser-evaluate "$output" $evidence ${also[@]+"${also[@]}"} || code=$?
    [ "$code" != 130 ] || exit 130
fi
fedser-report "$output" --output "$output/report"
exit "$code"
