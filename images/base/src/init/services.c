#include "init/services.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/text.h"
#include "init/console.h"
#include "init/loop.h"
#include "init/process.h"

#define LIST "/usr/lib/vmrun/services"
#define MAX_SERVICES 4
#define MAX_WORDS 24
#define RESTART_MS 1000

struct service {
	char *words[MAX_WORDS];
	char log[96];
	pid_t pid; /* 0: not running */
};

static char text[2048];
static struct service services[MAX_SERVICES];
static size_t service_count;

static void start(struct service *service)
{
	service->pid = process_start(service->words, -1, service->log);
	if (service->pid < 0) {
		service->pid = 0;
		loop_retry_in(RESTART_MS);
	}
}

static void parse(char *line)
{
	struct service *service = &services[service_count];
	size_t count = 0;
	for (char *word; (word = strsep(&line, " ")) != NULL && count < MAX_WORDS - 1;)
		if (*word != '\0')
			service->words[count++] = word;
	if (count == 0)
		return;
	const char *slash = strrchr(service->words[0], '/');
	snprintf(service->log, sizeof service->log, "/run/vmrun/log/%.64s",
		 slash != NULL ? slash + 1 : service->words[0]);
	service_count++;
}

void services_start(void)
{
	if (text_read(LIST, text, sizeof text) < 0)
		return;
	char *rest = text;
	for (char *line; (line = strsep(&rest, "\n")) != NULL && service_count < MAX_SERVICES;)
		if (*line != '#')
			parse(line);
	for (size_t i = 0; i < service_count; i++)
		start(&services[i]);
}

void services_retry(void)
{
	for (size_t i = 0; i < service_count; i++)
		if (services[i].pid == 0)
			start(&services[i]);
}

bool services_child_ended(pid_t pid)
{
	for (size_t i = 0; i < service_count; i++) {
		if (services[i].pid != pid)
			continue;
		console_say("%s ended; starting it again", services[i].words[0]);
		services[i].pid = 0;
		loop_retry_in(RESTART_MS);
		return true;
	}
	return false;
}
