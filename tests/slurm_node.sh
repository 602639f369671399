#!/bin/bash
# A real SLURM of one node, this machine, for the tests: slurm_node.sh start|stop FOLDER
# Needs root, and Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Prints what to export, or why not.
set -u
command=$1 folder=$2
conf=$folder/slurm.conf socket=$folder/munge.socket
export SLURM_CONF=$conf

stop() {
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null
    done
    sleep 1
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill -9 "$(cat "$folder/$name.pid")" 2>/dev/null
    done
}

start() {
    for program in munged slurmctld slurmd sbatch; do
        PATH=$PATH:/usr/sbin command -v $program >/dev/null || { echo "there is no $program: apt-get install slurm-wlm munge"; exit 3; }
    done
    [ "$(id -u)" = 0 ] || { echo "the daemons of SLURM need root"; exit 3; }
    export PATH=$PATH:/usr/sbin
    mkdir -p "$folder"/{state,spool,munge}; chmod 755 "$folder"; chmod 700 "$folder/munge"
    head -c 1024 /dev/urandom > "$folder/munge/key"; chmod 400 "$folder/munge/key"
    munged --force --socket="$socket" --key-file="$folder/munge/key" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" || { echo "munged did not start"; exit 3; }
    name=$(hostname -s)
    cat > "$conf" <<CONF
ClusterName=tests
SlurmctldHost=$name(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$((20000 + RANDOM % 5000))
SlurmdPort=$((25000 + RANDOM % 5000))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
JobRequeue=0
ReturnToService=2
KillWait=3
MpiDefault=none
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    slurmctld -f "$conf" && slurmd -f "$conf" || { echo "the daemons did not start: $(tail -1 "$folder"/slurm*.log)"; stop; exit 3; }
    for _ in $(seq 60); do
        sinfo -h -o %T 2>/dev/null | grep -q idle && { echo "SLURM_CONF=$conf"; exit 0; }
        sleep 0.5
    done
    echo "the node does not come up: $(tail -1 "$folder/slurmd.log")"; stop; exit 3
}

$command
