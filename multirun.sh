#!/usr/bin/env bash
# The grid of Chang et al. 2022, Table 3: the nature model (trained once, tested under each attack) and one model
# trained against each attack, all with randomisation at inference. On whatever dataset it is given:
#
#   ./multirun.sh                                             # synthetic speech, minutes
#   ./multirun.sh experiment=emodb dataset.root=…/emodb       # half an hour on two cores
#   ./multirun.sh experiment=chang2022 dataset.root=…/DEMoS   # the paper's
#
# What is done is not done again: start it again after an interruption. Then: fedser-report outputs
exec fedser --multirun attack=fgsm,pgd,deepfool defence=randomise,two_stage "$@"
