# What a cluster needs before a job starts: copy it to site.sh beside it (or name another file with SITE=) and edit.
# shellcheck shell=bash
# Every job of this folder sources it once, on the allocation's first host; srun hands the environment to all tasks.
# Without it a job runs in the environment that was active when it was submitted, as sbatch exports that.

# Modules, where CUDA or Python come from them:
#   module purge
#   module load cuda/12.8 python/3.12

# An environment, where none is active at submission. A batch shell does not read .bashrc: conda has to be opened first.
#   source "$HOME/miniforge3/etc/profile.d/conda.sh"
#   conda activate llava
# or
#   source "$HOME/envs/llava/bin/activate"

# Several hosts: the interface that NCCL (GPUs) and Gloo (CPU) shall use, one of `ip -brief address`; InfiniBand by its
# device. Needed where hosts have several networks and NCCL picks one that does not reach the others: it hangs then.
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#   export NCCL_IB_HCA=mlx5
#   export NCCL_DEBUG=INFO            # says which network was taken, once per rank

# No network on the compute nodes: what is not in the caches is not asked for.
#   export HF_HUB_OFFLINE=1 WANDB_MODE=offline
